"""Casts in a folder: plain tensors of their type; what is loaded computes to the bit what was saved."""

import json

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

import fewbit as fb
from fewbit.checkpoints.compressed_tensors import CompressedTensors
from fewbit.checkpoints.compressed_tensors_casts import KEY
from fewbit.errors import CheckpointError, PlanError
from fewbit.interfaces import Layer, QuantizedLayer
from fewbit.schemes.notation import parse_input_scheme, parse_scheme


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8 * 36, 64), nn.ReLU(), nn.Linear(64, 32), nn.Linear(32, 4)
    ).eval()


IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(1))
MIXED = fb.Recipe([
    fb.Rule("0", weight="fp16"), fb.Rule("2", weight="bf16", input="bf16"), fb.Rule("4", weight="int8", input="int8"),
])  # fmt: skip


@pytest.fixture
def saved(tmp_path):
    """Save a recipe and return the result and the folder."""

    def save(recipe, **options):
        result = fb.quantize(net(), recipe, to="compressed-tensors", evaluation=[IMAGES], **options)
        return result, result.save(tmp_path / "out")

    return save


def configuration(path):
    return json.loads((path / "config.json").read_text())


@pytest.mark.parametrize("recipe", ["fp16", "bf16", MIXED], ids=["fp16", "bf16", "mixed"])
def test_what_is_loaded_computes_to_the_bit_what_was_saved(saved, recipe):
    result, path = saved(recipe)
    loaded = fb.load(path, into=net())
    with torch.no_grad():
        assert torch.equal(loaded.model(IMAGES), result.model(IMAGES))
    assert [row.becomes for row in loaded.plan.rows] == [row.becomes for row in result.plan.rows]
    assert [row.bytes_after for row in loaded.plan.rows] == [row.bytes_after for row in result.plan.rows]
    assert loaded.plan.storage_type == "float32"


def test_what_was_loaded_is_saved_again_as_the_same_bytes(saved, tmp_path):
    _, path = saved(MIXED)
    fb.load(path, into=net()).save(tmp_path / "second")
    for file in ("config.json", "model.safetensors"):
        assert (path / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


@pytest.mark.parametrize(("name", "dtype"), [("fp16", torch.float16), ("bf16", torch.bfloat16)])
def test_a_cast_weight_is_a_plain_tensor_of_its_type_and_shape(saved, name, dtype):
    result, path = saved(name)
    reference = net()
    stored = load_file(path / "model.safetensors")
    assert stored.keys() == reference.state_dict().keys()
    for layer in ("0", "2", "4", "5"):
        weight = reference.get_submodule(layer).weight
        assert torch.equal(stored[f"{layer}.weight"], weight.to(dtype))
        assert stored[f"{layer}.bias"].dtype == torch.float32
    assert "quantization_config" not in configuration(path)
    sizes = sum(tensor.nbytes for tensor in stored.values())
    assert sizes == result.plan.bytes_after


def test_casts_are_float_layers_to_compressed_tensors(saved):
    _, path = saved(MIXED)
    config = configuration(path)
    assert config["quantization_config"]["ignore"] == ["5", "2"]
    assert list(config["quantization_config"]["config_groups"]) == ["group_0"]
    assert config[KEY] == [
        {"weight": "fp16", "input": None, "layers": ["0"]}, {"weight": "bf16", "input": "bf16", "layers": ["2"]},
    ]  # fmt: skip


def test_the_numbers_of_a_layer_that_is_kept_come_through(saved):
    model = net()
    with torch.no_grad():
        model[4].weight[0, 0] = 1e5
    result = fb.quantize(model, "fp16", to="compressed-tensors", evaluation=[IMAGES])
    path = result.save(saved("fp16")[1].parent / "kept")
    loaded = fb.load(path, into=net())
    assert loaded.model[4].weight[0, 0] == 1e5
    assert "4" not in [name for entry in configuration(path)[KEY] for name in entry["layers"]]


PROBLEMS = {
    "class": ("fp16", None, None, "Conv1D", "writes casts of Linear, Embedding, Conv1d, Conv2d, Conv3d, and this"),
    "turned": ("fp16", None, None, "ConvTranspose2d", "is of class ConvTranspose2d; keep it, or save the module's"),
    "input": ("fp16", "int8", None, "Linear", "no place for the input 'int8 token asym' beside a weight in fp16"),
    "output": ("fp16", None, "fp16", "Linear", "no place for the output 'fp16' beside a weight in fp16"),
    "input of another": ("int8", "fp16", None, "Linear", "no layout for the input 'fp16'; use int2 to int8, e4m3,"),
}


@pytest.mark.parametrize("case", PROBLEMS)
def test_what_has_no_place_is_a_problem_of_the_plan(case):
    weight, given, output, module_class, message = PROBLEMS[case]
    quantized = QuantizedLayer(
        Layer("0", "linear", (8, 64), module_class), parse_scheme(weight),
        *(text and parse_input_scheme(text) for text in (given, output)),
    )  # fmt: skip
    assert message in CompressedTensors().problem(quantized)


def test_a_recipe_that_a_folder_cannot_hold_is_refused_before_any_work():
    with pytest.raises(PlanError, match="0: a folder has no place for the output 'bf16'"):
        fb.quantize(net(), fb.Recipe([fb.Rule("0", weight="bf16", output="bf16")]), to="compressed-tensors")


DAMAGE = {
    "no list": (lambda c: c.update({KEY: {"0": "fp16"}}), "fewbit_casts of config.json is no list but"),
    "no object": (lambda c: c.update({KEY: ["fp16"]}), "is no object but 'fp16'"),
    "names": (lambda c: c[KEY][0].update(layers="0"), "no list of names but '0'"),
    "another word": (lambda c: c[KEY][0].update(weight="int4"), "knows fp16, bf16, not 'int4'"),
    "another input": (lambda c: c[KEY][0].update(input=["fp16"]), r"knows fp16, bf16, not \['fp16'\]"),
    "another type": (lambda c: c[KEY][0].update(weight="bf16"), "its weight is float16; fewbit_casts of .* says bf16"),
    "missing": (lambda c: c[KEY][0]["layers"].append("9"), "'9': its weight is missing"),
    "twice": (lambda c: c[KEY].append(dict(c[KEY][0])), "names '0' twice"),
    "a float layer": (lambda c: c[KEY][0].update(layers=["2"]), "'2': its weight is bfloat16"),
    "a quantized layer": (lambda c: c[KEY][0].update(layers=["4"]), "'4': its weight is int8"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_configuration_that_contradicts_the_files_is_refused(saved, case):
    damage, message = DAMAGE[case]
    _, path = saved(MIXED)
    config = configuration(path)
    damage(config)
    (path / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=message):
        fb.load(path, into=net())


def test_a_damaged_number_is_found(saved):
    _, path = saved("fp16")
    with safe_open(path / "model.safetensors", "pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  # no mapping
    tensors["2.weight"][3, 4] = float("inf")
    save_file(tensors, path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="2: 1 of 18432 weights are NaN or infinite; the file is damaged"):
        fb.load(path, into=net())


def test_a_folder_of_casts_alone_is_inspected_and_not_quantized_again(saved, capsys):
    from fewbit.cli.application import main

    _, path = saved("fp16")
    with pytest.raises(SystemExit) as leave:
        main(["inspect", str(path), "--json"])
    assert leave.value.code == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)["tensors"]}
    assert rows["0"]["form"] == "fp16, input fp16"
    assert rows["0"]["nbytes"] == 2 * 8 * 27
    np.testing.assert_allclose(rows["0"]["highest"], net()[0].weight.half().max().item())
    with pytest.raises(PlanError, match="is quantized already; start from the float model"):
        fb.plan(path, "w8a16")
