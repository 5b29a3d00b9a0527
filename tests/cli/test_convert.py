"""`fewbit convert`, and the other commands on GPTQ and AWQ folders."""

import json

import pytest

import fewbit as fb
from fewbit.cli.application import main

LAYERS = 7


@pytest.fixture(scope="module")
def gptq(made):
    """What `fewbit quantize --to gptq` wrote."""
    with pytest.raises(SystemExit) as left:
        main(["quantize", str(made / "model"), "-o", str(made / "gptq"), "--weight", "int4 g32 asym", "--to", "gptq",
              "--keep", "lm_head", "--text", "none", "-q"])  # fmt: skip
    assert left.value.code == 0
    return made / "gptq"


def test_convert_says_what_it_compared(run, gptq, tmp_path):
    code, printed, _ = run("convert", gptq, "-o", tmp_path / "awq", "--to", "awq")
    assert code == 0
    assert printed == (
        f"converted {gptq} -> {tmp_path / 'awq'} (awq)\n"
        "7 of 7 quantized weights, read back, are equal to the bit to those of the source\n"
    )
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        path.name for path in (tmp_path / "awq").iterdir()
    }
    code, printed, _ = run("convert", tmp_path / "awq", "-o", tmp_path / "ct", "--json")
    data = json.loads(printed)
    assert (data["to"], len(data["layers"])) == ("compressed-tensors", LAYERS)
    assert data["layers"][0] == {
        "name": "model.layers.0.self_attn.q_proj", "before": "int4 g32 asym", "after": "int4 g32 asym", "sqnr": None,
        "unrounded": None,
    }  # fmt: skip


@pytest.mark.parametrize("to", ["gptq", "awq"])
def test_inspect_and_evaluate_take_such_folders(run, made, gptq, tmp_path, to):
    folder = gptq
    if to == "awq":
        folder = tmp_path / "awq"
        assert run("convert", gptq, "-o", folder, "--to", to)[0] == 0
    data = json.loads(run("inspect", folder, "--json")[1])
    quantized = [row for row in data["tensors"] if row["quantized"]]
    assert len(quantized) == LAYERS
    assert {row["form"] for row in quantized} == {"int4 g32 asym"}
    stored = (folder / "model.safetensors").stat().st_size
    assert 0 < stored - data["bytes"] < 6000  # the header
    measure = ("--text", made / "text.txt", "--sequences", "2", "--length", "16", "--json")
    found = json.loads(run("evaluate", folder, "--reference", made / "model", *measure)[1])
    same = json.loads(run("evaluate", gptq, "--reference", made / "model", *measure)[1])
    assert found["quality"] | {"seconds": 0.0} == same["quality"] | {"seconds": 0.0}


def test_a_loss_is_refused_by_the_exit_code_and_told_if_asked(run, made, gptq, tmp_path):
    eight = tmp_path / "eight"
    run("quantize", made / "model", "-o", eight, "--weight", "int8 g32", "--keep", "lm_head", "--text", "none", "-q")
    code, out, err = run("convert", eight, "-o", tmp_path / "awq", "--to", "awq")
    assert (code, out) == (2, "")
    assert err.startswith(
        "fewbit: model.layers.0.self_attn.q_proj and 6 more: AWQ has no layout for 'int8 g32'; use int4"
    )
    assert not (tmp_path / "awq").exists()
    code, printed, _ = run("convert", eight, "-o", tmp_path / "awq", "--to", "awq", "--lossy")
    assert code == 0
    assert "7 were rounded anew, to nearest:" in printed
    assert printed.count("int8 g32 -> int4 g32  SQNR ") == LAYERS


def test_a_gguf_file_becomes_a_folder_by_its_name_alone(run, language_model, tmp_path):
    path = tmp_path / "m.gguf"
    fb.quantize(language_model("llama"), fb.Recipe([fb.Rule(kind="linear", weight="q4_0")]), to="gguf").save(path)
    code, printed, _ = run("convert", path, "-o", tmp_path / "ct")
    assert code == 0
    assert printed == (
        f"converted {path} -> {tmp_path / 'ct'} (compressed-tensors)\n"
        "14 of 14 quantized weights, read back, are equal to the bit to those of the source\n"
    )
    data = json.loads(run("inspect", tmp_path / "ct", "--json")[1])
    assert {row["form"] for row in data["tensors"] if row["quantized"]} == {"int4 g32"}
    code, _, err = run("convert", path, "-o", tmp_path / "other.gguf")
    assert (code, err) == (2, f"fewbit: {path} is a gguf file already; copy it, or name another layout with --to\n")


def test_a_model_in_parts_is_named_by_its_first(run, language_model, tmp_path):
    recipe = fb.Recipe([fb.keep(kind="head"), fb.Rule(kind="linear", weight="int4 g32")])
    fb.quantize(language_model("llama"), recipe, to="gptq").save(tmp_path / "gptq")
    code, printed, _ = run("convert", tmp_path / "gptq", "-o", tmp_path / "m.gguf", "--shard-size", "50kB")
    first = next(tmp_path.glob("m-00001-of-*.gguf"))
    assert code == 0
    assert printed.splitlines()[0] == f"converted {tmp_path / 'gptq'} -> {first} (gguf)"
    quantize = ("quantize", "smollm2", "-o", tmp_path / "m.gguf", "--recipe", "q8_0", "--shard-size")
    code, _, err = run(*quantize, "50MB")  # before the model is loaded
    assert (code, err) == (2, f"fewbit: {first} exists; choose another name or pass overwrite (--overwrite)\n")
    assert run(*quantize, "much")[2] == "fewbit: 'much' is no size; write 2GB, 500MB or a number of bytes\n"
