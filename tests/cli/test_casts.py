"""`--recipe fp16` and `bf16` from model to folder and back: what is kept float is said, by the number that keeps it."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

MEASURE = ("--sequences", "2", "--length", "16")
DOWN = "model.layers.0.mlp.down_proj"


@pytest.fixture
def loud(made, tmp_path):
    """The model with a weight that fp16 does not hold."""
    folder = tmp_path / "loud"
    shutil.copytree(made / "model", folder)
    tensors = load_file(folder / "model.safetensors")
    tensors[f"{DOWN}.weight"][3, 4] = 1e5
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def quantized(run, model, out, recipe, *options):
    code, printed, err = run("quantize", model, "-o", out, "--recipe", recipe, *options)
    assert code == 0, err
    return printed


@pytest.mark.parametrize("recipe", ["fp16", "bf16"])
def test_a_folder_comes_out_that_is_inspected_and_evaluated(run, made, tmp_path, recipe):
    text = ("--text", made / "text.txt", *MEASURE)
    printed = quantized(run, made / "model", tmp_path / "out", recipe, *text)
    assert f"linear     {recipe}, input {recipe}  nearest      7" in printed
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == ("bfloat16" if recipe == "bf16" else "float32")  # the model is stored in bfloat16
    assert ("files will hold float16 beside bfloat16" in printed) is (recipe == "fp16")
    code, found, _ = run("evaluate", tmp_path / "out", "--reference", made / "model", *text, "--json")
    assert code == 0
    divergence = json.loads(found)["quality"]["kl_divergence"]
    # The same model on the same text, once by the run that made it and once as it was loaded.
    assert divergence == pytest.approx(report["after"]["kl_divergence"], rel=1e-3, abs=1e-9)
    assert 0 < divergence < 1e-3
    code, found, _ = run("inspect", tmp_path / "out", "--match", "down_proj")
    assert code == 0
    assert f"{recipe}, input {recipe}" in found


def test_what_a_cast_would_overflow_is_kept_and_said(run, made, tmp_path, loud):
    printed = quantized(run, loud, tmp_path / "out", "fp16", "--text", made / "text.txt", *MEASURE)
    before, after = printed.split("\n\n")
    assert "kept float if its weights overflow the cast, which shows when they are read" in before
    assert f"kept float             {DOWN}: its weights reach 99,840, and fp16 ends at 65,504\n" in after
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [layer["name"] for layer in report["layers"] if layer["overflow"]] == [DOWN]
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert str(stored[f"{DOWN}.weight"].dtype) == "torch.bfloat16"
    assert stored[f"{DOWN}.weight"][3, 4] == 99_840
    assert "its weights reach 99,840" in (tmp_path / "out" / "report.html").read_text()


@pytest.mark.parametrize("given", [True, False])
def test_a_calibration_text_checks_inputs_where_nothing_is_measured(run, made, tmp_path, given):
    data = ("--calibration", made / "text.txt", "--samples", "2", "--calibration-length", "16") if given else ()
    quantized(run, made / "model", tmp_path / "out", "fp16", "--text", "none", *data)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    unchecked = [text for text in report["remarks"] if "were not checked for overflow" in text]
    assert len(unchecked) == (not given)
    assert bool(report["calibration"]) is given
