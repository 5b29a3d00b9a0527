"""Every form that is written loads in transformers with compressed-tensors 0.20 and 0.19, each in its own process."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fewbit as fb

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
#: The environment made for it, or one that has the same versions for another reason.
ENVIRONMENTS = ("compressedtensors019", "llmcompressor")
#: Of weight and input.
FORMS = {
    "pack": ("int4 g32", None), "pack3": ("int3 g32", None), "pack5": ("int5 channel", None),
    "pack tensor": ("int8 tensor", None), "pack asym": ("int4 g32 asym", None),
    "pack3 asym": ("int3 channel asym", None), "pack tensor asym": ("int4 tensor asym", None),
    "int8 token": ("int8 channel", "int8"), "int8 token sym": ("int8 channel", "int8 sym"),
    "int8 static": ("int8 channel", "int8 static"), "int8 static sym": ("int8 tensor", "int8 static sym"),
    "int8 tensor": ("int8 tensor asym", "int8 tensor"), "int4 token": ("int4 g32 asym", "int8"),
    "int8 group": ("int8 channel asym", "int8 g32"), "int4 float": ("int4 g32", "e4m3"),
    "fp8": ("e4m3 channel", None), "fp8 token": ("e4m3 channel", "e4m3"), "fp8 static": ("e4m3 tensor", "e4m3 static"),
    "fp8 group": ("e4m3 g32", "e4m3 g32"), "fp8 tensor": ("e4m3 tensor", "e4m3 tensor"),
    "nvfp4": ("nvfp4", None), "mxfp4": ("mxfp4", None), "mxfp6": ("mxfp6", None), "mxfp8": ("mxfp8", None),
    "mxfp4 input": ("mxfp4", "mxfp4"), "nvfp4 fp8": ("nvfp4", "e4m3"), "mxfp8 int8": ("mxfp8", "int8"),
    "nvfp4 input": ("nvfp4", "nvfp4 static"), "mxfp8 input": ("mxfp8", "mxfp8"),
    "int4 nvfp4": ("int4 g32", "nvfp4 static"),
}  # fmt: skip
MIXED = [
    fb.keep(r".*layers\.0\.self_attn\.o_proj"),
    fb.Rule(r".*down_proj", weight="int8", input="int8 sym"),
    fb.Rule(r".*v_proj", weight="e4m3"),
    fb.Rule(r".*up_proj", weight="mxfp4"),
    fb.Rule(r".*gate_proj", weight="nvfp4"),
    fb.Rule(kind="linear", weight="int4 g32"),
]
#: compressed-tensors 0.20 cannot build the packed layout of a zero point in its default mode, of its own files either.
DEQUANTIZED = {"0.20": ("pack asym", "pack3 asym"), "0.19": ()}
#: A layout of 0.20.
UNKNOWN = {"0.20": (), "0.19": ("mxfp6",)}


@pytest.fixture(scope="module")
def written(tmp_path_factory, small_llama):
    """A folder for each form, with the weights that it should give; a last one is damaged."""
    root = tmp_path_factory.mktemp("written")
    recipes = {
        name: [fb.keep(kind="head"), fb.Rule(kind="linear", weight=weight, input=given)]
        for name, (weight, given) in FORMS.items()
    }
    expected = {}
    for name, rules in {**recipes, "mixed": [fb.keep(kind="head"), *MIXED]}.items():
        batches = [torch.arange(48)[None], torch.arange(47, -1, -1)[None]]
        model = small_llama(torch.bfloat16, tie_word_embeddings=True)
        result = fb.quantize(
            model,
            fb.Recipe(rules),
            to="compressed-tensors",
            calibration=batches,
        )
        result.save(root / name)
        expected[name] = {
            f"{own.layer.name}.weight": result.model.get_submodule(own.layer.name).qtensor.dequantize()
            for own in result.plan.quantized
        }
    shutil.copytree(root / "nvfp4", root / "damaged")
    tensors = load_file(root / "damaged" / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight_packed"][7, 5] ^= 1
    save_file(tensors, root / "damaged" / "model.safetensors", metadata={"format": "pt"})
    expected["damaged"] = expected["nvfp4"]
    return root, expected


@pytest.fixture(scope="module", params=["0.20", "0.19"])
def loaded(request, written, tmp_path_factory):
    """What a version of compressed-tensors makes of the folders: its name, the weights by folder, errors by folder."""
    python = sys.executable
    if request.param == "0.19":
        found = [PEERS / name / "bin" / "python" for name in ENVIRONMENTS]
        python = next((str(path) for path in found if path.exists()), None)
        if python is None:
            pytest.skip(f"needs compressed-tensors 0.19: benchmarks/peers/make.sh {ENVIRONMENTS[0]}")
    root, expected = written
    dequantized = DEQUANTIZED[request.param]
    runs = {(): [name for name in expected if name not in dequantized], ("--dequantize",): dequantized}
    weights, errors = {}, {}
    for words, names in runs.items():
        if names:
            out = tmp_path_factory.mktemp("out")
            command = [python, PEERS / "compressedtensors_weights.py", "--folders", *(root / name for name in names)]
            run = subprocess.run([*command, "--out", out, *words], capture_output=True, text=True, check=True)
            line = json.loads(run.stdout.splitlines()[-1])
            assert line["versions"]["compressed-tensors"].startswith(request.param)
            errors |= line["errors"]
            weights |= {name: load_file(out / f"{name}.safetensors") for name in names if name not in line["errors"]}
    return request.param, weights, errors


def differing(weights, expected):
    return [name for name, weight in expected.items() if not torch.equal(weights[name], weight.bfloat16())]


def test_every_form_that_the_version_knows_loads(loaded):
    version, _, errors = loaded
    assert set(errors) == set(UNKNOWN[version])
    assert all("Only num_bits in (8) are supported" in errors[name] for name in UNKNOWN[version])


@pytest.mark.parametrize("form", [*FORMS, "mixed"])
def test_the_weights_are_those_that_were_saved_to_the_bit(loaded, written, form):
    version, weights, _ = loaded
    if form in UNKNOWN[version]:
        pytest.skip(f"compressed-tensors {version} has no such layout")
    expected = written[1][form]
    assert len(expected) == (13 if form == "mixed" else 14)
    assert differing(weights[form], expected) == []


@pytest.mark.parametrize("form", ["nvfp4", "mxfp4", "mxfp6", "mxfp8"])
def test_those_whose_scales_are_codes_are_exact_not_only_once_rounded(loaded, written, form):
    version, weights, _ = loaded
    if form in UNKNOWN[version]:
        pytest.skip(f"compressed-tensors {version} has no such layout")
    for name, weight in written[1][form].items():
        assert torch.equal(weights[form][name].float(), weight)


def test_the_comparison_notices_one_wrong_bit(loaded, written):
    """The negative control."""
    _, weights, _ = loaded
    assert differing(weights["damaged"], written[1]["damaged"]) == ["model.layers.1.mlp.up_proj.weight"]
    wrong = weights["damaged"]["model.layers.1.mlp.up_proj.weight"].float()
    right = written[1]["damaged"]["model.layers.1.mlp.up_proj.weight"]
    assert np.argwhere((wrong != right).numpy()).tolist() == [[7, 10]]
