"""What a stranger may give by mistake: each is answered with one line that helps, and nothing is written."""

import os
import shutil
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

MEASURE = ("--sequences", "2", "--length", "16")
CALIBRATE = ("--samples", "2", "--calibration-length", "16")
UP = "model.layers.0.mlp.up_proj"
NORM = "model.layers.0.post_attention_layernorm.weight"


def names(path):
    return sorted(entry.name for entry in path.iterdir())


@pytest.fixture
def mistaken(run, made, tmp_path, monkeypatch):
    """Run `fewbit quantize` from an empty folder; it must leave with 2 and write nothing; return what it said."""
    place = tmp_path / "place"
    place.mkdir()
    monkeypatch.chdir(place)

    def call(*options, model=made / "model", output="out"):
        code, out, err = run("quantize", model, "-o", output, *options)
        assert (code, out) == (2, "")
        assert names(place) == []
        assert err.startswith("fewbit: ")
        assert err.endswith("\n")
        assert "Traceback" not in err
        return err.removeprefix("fewbit: ").removesuffix("\n")

    return call


@pytest.fixture
def changed(made, tmp_path):
    """Return a copy of the model with one number of one tensor changed."""

    def change(tensor, value):
        folder = tmp_path / "changed"
        shutil.copytree(made / "model", folder)
        weights = load_file(folder / "model.safetensors")
        weights[tensor].view(-1)[3] = value
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        return folder

    return change


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("recipe", ["w4a16", "w8a16"])
def test_a_weight_that_is_no_number_is_named_with_its_layer(mistaken, changed, recipe, value):
    said = mistaken("-q", "--recipe", recipe, "--text", "none", model=changed(f"{UP}.weight", value))
    assert said == f"{UP}: 1 of 6144 weights are NaN or infinite; repair or keep it"


@pytest.mark.parametrize("recipe", ["w4a16", "w8a16"])
def test_a_number_outside_of_the_layers_is_named_too(mistaken, changed, recipe):
    said = mistaken("-q", "--recipe", recipe, "--text", "none", model=changed("model.norm.weight", float("nan")))
    assert said == (
        "model.norm.weight: 1 of its numbers are not finite in bfloat16; repair them, "
        "or use another dtype where they overflow"
    )


def test_a_number_that_overflows_the_type_of_the_file_is_named_before_any_work(mistaken, changed):
    said = mistaken("-q", "--dtype", "float16", "--text", "none", model=changed("model.norm.weight", 1e6))
    assert said.startswith("model.norm.weight: 1 of its numbers are not finite in float16; ")


def test_an_activation_that_overflows_is_named_with_its_layer(mistaken, changed, made):
    model = changed(NORM, 3e38)  # finite; times anything above 1.13 it is not
    said = mistaken("-q", "--text", "none", "--calibration", made / "text.txt", *CALIBRATE, model=model)
    assert said.startswith("model.layers.0.mlp.gate_proj: ")
    assert "NaN or infinity" in said


def test_a_model_whose_scores_overflow_writes_no_text(mistaken, changed):
    said = mistaken("-q", "--text", "none", *CALIBRATE, model=changed(NORM, 3e38))
    assert said.startswith("the model's own scores are NaN or infinite while it writes text to calibrate with; ")


TEXTS = {
    "empty": (b"", "text {} is empty"),
    "blank": (b" \n\t \n", "text {} is empty"),
    "short": (b"w1 w2", "the text has 2 tokens, fewer than one sequence of 16; give more text, or shorter sequences"),
    "binary": (b"\xff\xfe\x00", "text {} is not UTF-8: invalid start byte at byte 0"),
    "missing": (None, "cannot read text {}: No such file or directory"),
}


@pytest.mark.parametrize("option", ["--calibration", "--text"])
@pytest.mark.parametrize("case", TEXTS)
def test_a_text_that_cannot_be_used_is_refused(mistaken, tmp_path, option, case):
    content, message = TEXTS[case]
    path = tmp_path / "text.txt"
    if content is not None:
        path.write_bytes(content)
    others = ("--text", "none") if option == "--calibration" else ()
    assert mistaken("-q", option, path, *others, *MEASURE, *CALIBRATE) == message.format(path)


@pytest.mark.parametrize(("option", "what"), [("--calibration", "calibration"), ("--text", "evaluation")])
def test_tokens_outside_the_vocabulary_are_refused(mistaken, made, save_tokenizer, tmp_path, option, what):
    model = tmp_path / "foreign"
    shutil.copytree(made / "model", model)
    save_tokenizer(model, "alien")  # as the 320th word, in a model that knows 0 to 319
    text = tmp_path / "text.txt"
    text.write_text(" ".join([*["w1"] * 20, "alien", *["w2"] * 20]))
    others = ("--text", "none") if option == "--calibration" else ()
    assert mistaken("-q", option, text, *others, *MEASURE, *CALIBRATE, model=model) == (
        f"{what} batch 1: token 320 is outside the vocabulary of 320; use the model's own tokenizer"
    )


def test_sequences_beyond_the_context_are_refused(mistaken, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("w1 " * 400)
    long = "batch 0: 65 tokens are more than the model's context of 64; use shorter sequences"
    calibrated = mistaken("-q", "--text", "none", "--calibration", text, "--calibration-length", "65")
    assert calibrated == f"calibration {long}"
    assert mistaken("-q", "--text", text, "--length", "65") == f"evaluation {long}"
    assert mistaken("-q", "--text", "none", "--calibration-length", "65") == (
        "calibration sequences of 65 tokens exceed the context of 64; use fewer"
    )


def test_evaluate_checks_its_text_against_the_model_too(run, made, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("w1 " * 400)
    code, out, err = run("evaluate", made / "model", "--text", text, "--length", "65", "-q")
    assert (code, out) == (2, "")
    assert err == "fewbit: text batch 0: 65 tokens are more than the model's context of 64; use shorter sequences\n"


RECIPES = {
    "a rule that matches nothing": (
        '[[rules]]\nmatch = "nothing"\nweight = "int4 g32"\n',
        "rule [match 'nothing': int4 g32 by nearest] matches no layer; the layers are: ",
    ),
    "a group size that does not divide": (
        '[[rules]]\nkind = "linear"\nweight = "int4 g40"\n',
        "model.layers.0.self_attn.q_proj and 5 more: in_features 64 is not a multiple of group size 40; use g",
    ),
    "an unknown key": ('[[rules]]\nkind = "linear"\nwieght = "int4"\n', "unknown key in rule 1 of recipe mine.toml"),
    "an unknown option of an algorithm": (
        '[[rules]]\nkind = "linear"\nweight = "int4"\nalgorithm = {name = "gptq", dampening = 0.1}\n',
        "dampening",
    ),
    "no TOML": ("[[rules]\n", "recipe mine.toml is not valid TOML: "),
    "nothing": ("", "the recipe quantizes nothing: no rule names a weight scheme; add one"),
}


@pytest.mark.parametrize("case", RECIPES)
def test_a_recipe_that_cannot_be_carried_out_is_refused(mistaken, tmp_path, case):
    text, message = RECIPES[case]
    path = tmp_path / "mine.toml"
    path.write_text(text)
    assert message in mistaken("-q", "--recipe", path, "--text", "none")


# Where nothing can be written.


def test_no_room_is_found_before_the_weights_are_read(mistaken, monkeypatch, tmp_path):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage(100, 90, 10))
    monkeypatch.setattr("fewbit.sources.huggingface.TransformersModel.load", lambda self: pytest.fail("loaded"))
    said = mistaken("-q", "--text", "none")
    assert said.startswith(f"{tmp_path / 'place'} has 10 bytes free and the model takes ")
    assert said.endswith("; make room, or choose another output")


@pytest.mark.parametrize("output", ["/proc/out", "/dev/null/out"])
def test_a_place_where_nothing_can_be_made_is_found_before_the_weights_are_read(mistaken, monkeypatch, output):
    monkeypatch.setattr("fewbit.sources.huggingface.TransformersModel.load", lambda self: pytest.fail("loaded"))
    assert mistaken("-q", "--text", "none", output=output).startswith(f"cannot write to {Path(output).parent}: ")


def test_a_folder_without_write_permission_is_found_before_the_weights_are_read(mistaken, monkeypatch, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root may write everywhere; the case above shows the same of another kind")
    (tmp_path / "shut").mkdir(mode=0o500)
    monkeypatch.setattr("fewbit.sources.huggingface.TransformersModel.load", lambda self: pytest.fail("loaded"))
    said = mistaken("-q", "--text", "none", output=tmp_path / "shut" / "out")
    assert said == f"cannot write to {tmp_path / 'shut'}: Permission denied; choose another output"


LIMITED = """
import resource, signal, sys
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
from fewbit.cli import main
main(sys.argv[1:])
"""


def full_disk(made, place, *launch):
    command = ["quantize", str(made / "model"), "-o", str(place / "out"), "--recipe", "w8a16", "--text", "none", "-q"]
    return subprocess.run([sys.executable, *launch, *command], capture_output=True, text=True, check=False)


def test_a_file_that_cannot_grow_leaves_nothing_behind(made, tmp_path):
    done = full_disk(made, tmp_path, "-c", LIMITED)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "fewbit: cannot write model.safetensors: File too large\n"
    assert names(tmp_path) == []


def test_a_full_disk_leaves_nothing_behind(made, tmp_path):
    mounted = tmp_path / "small"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mounted)]
    if os.geteuid() != 0 or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        blind = "import shutil, sys; shutil.disk_usage = lambda place: type('', (), {'free': 1 << 40}); "
        done = full_disk(made, mounted, "-c", f"{blind}from fewbit.cli import main; main(sys.argv[1:])")
        left = names(mounted)
        told = full_disk(made, mounted, "-m", "fewbit")
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
    assert (done.returncode, done.stdout, left) == (2, "", [])
    assert done.stderr == "fewbit: cannot write model.safetensors: No space left on device\n"
    assert told.returncode == 2
    assert told.stderr.startswith(f"fewbit: {mounted} has 65,536 bytes free and the model takes ")


def test_the_model_can_be_quantized_when_nothing_is_wrong(run, made, tmp_path):
    """Without this the tests above could pass on a model that nothing can be done with."""
    arguments = ("--calibration", made / "text.txt", "--text", made / "text.txt", *MEASURE, *CALIBRATE, "-q")
    assert run("quantize", made / "model", "-o", tmp_path / "out", *arguments) == (0, "", "")
    assert torch.isfinite(load_file(tmp_path / "out" / "model.safetensors")["model.norm.weight"]).all()
