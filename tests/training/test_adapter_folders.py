"""Folders of low-rank adapters, and what adapters, folders and files refuse."""

import json

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import CheckpointError, NonFiniteError, NotYetError, PlanError, RecipeError


def recipe(scheme):
    return fb.Recipe([fb.Rule(kind="linear", weight=scheme)])


def wide(columns=256):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(64, columns), nn.ReLU(), nn.Linear(columns, 10))


def test_adapters_go_on_from_their_folder(train, outputs, tmp_path):
    model = fb.prepare_adapters(fb.quantize(wide(), recipe("int4 g32")))
    train(model, 3)
    written = fb.save_adapters(model, tmp_path / "a")
    assert json.loads((written / "adapter_config.json").read_text())["target_modules"] == ["1", "3"]
    again = fb.load_adapters(fb.quantize(wide(), recipe("int4 g32")), written)
    assert torch.equal(outputs(again), outputs(model))
    with pytest.raises(CheckpointError, match="exists"):
        fb.save_adapters(model, written)
    fb.save_adapters(again, written, overwrite=True)


def test_an_ambiguous_name_is_written_as_the_whole_name(tmp_path):
    model = nn.Sequential()
    model.add_module("fc", nn.Linear(32, 32))
    model.add_module("inner", nn.Sequential())
    model.inner.add_module("fc", nn.Linear(32, 32))
    result = fb.quantize(model, fb.Recipe([fb.Rule("fc", weight="int8"), fb.keep(r"inner\.fc")]))
    written = fb.save_adapters(fb.prepare_adapters(result), tmp_path / "a")
    assert json.loads((written / "adapter_config.json").read_text())["target_modules"] == "fc"


def test_what_cannot_be_adapted_is_refused(perceptron, images):
    with pytest.raises(RecipeError, match=r"give what fewbit\.quantize or fewbit\.load returns"):
        fb.prepare_adapters(perceptron())
    with pytest.raises(PlanError, match=r"has no adapters; call fewbit\.prepare_adapters first"):
        fb.merge_adapters(perceptron())
    result = fb.quantize(perceptron(), recipe("int8"))
    with pytest.raises(PlanError, match="of the quantized linear layers none matches 'x'; there are: 1 and 1 more"):
        fb.prepare_adapters(result, fb.Adapters(match="x"))
    fb.prepare_adapters(result)
    with pytest.raises(PlanError, match="has adapters already"):
        fb.prepare_adapters(result)
    rounded = fb.quantize(
        perceptron(),
        fb.Recipe([fb.Rule(kind="linear", weight="int8", input="int8 static", output="int8 static")]),
        calibration=[images()],
    )
    with pytest.raises(PlanError, match="the output is rounded, and an adapter is added to it"):
        fb.prepare_adapters(rounded)


def test_an_onnx_file_has_no_place_for_them(perceptron, images, tmp_path):
    result = fb.quantize(perceptron(), "w8a16", evaluation=[images()])
    fb.prepare_adapters(result)
    with pytest.raises(CheckpointError, match="1 has an adapter beside its codes"):
        result.save(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 0}, "rank 0 is no rank"),
        ({"alpha": -1.0}, "alpha -1.0 is not above 0"),
        ({"dropout": 1.0}, r"dropout 1.0 is not in \[0, 1\)"),
        ({"match": "("}, "is no regular expression"),
        ({"seed": -1}, "seed -1 is no seed"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        fb.Adapters(**options)


def test_an_adapter_that_became_nan_is_named(perceptron, images, tmp_path):
    model = fb.prepare_adapters(fb.quantize(perceptron(), recipe("int8")))
    with torch.no_grad():
        model[3].adapter.up[0, 0] = float("nan")
    for stop in (lambda: fb.merge_adapters(model), lambda: fb.save_adapters(model, tmp_path / "a")):
        with pytest.raises(NonFiniteError, match="3: its adapter has become NaN or infinite"):
            stop()
    with pytest.raises(NonFiniteError, match=r"3\.adapter\.up has become NaN or infinite"):
        model.train()(images())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"use_dora": True}, NotYetError, "use_dora = True"),
        ({"bias": "all"}, NotYetError, "bias = 'all'"),
        ({"peft_type": "IA3"}, NotYetError, "peft_type = 'IA3'"),
        ({"r": "8"}, CheckpointError, "r = '8' is no rank"),
        ({"r": 3}, CheckpointError, "not of rank 3"),
        ({"lora_alpha": None}, CheckpointError, "lora_alpha = None is no such number"),
    ],
)
def test_folders_of_other_adapters_are_refused_and_the_model_stays(change, error, message, perceptron, tmp_path):
    model = fb.prepare_adapters(fb.quantize(perceptron(), recipe("int8")))
    written = fb.save_adapters(model, tmp_path / "a")
    config = written / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **change}))
    other = fb.quantize(perceptron(), recipe("int8"))
    with pytest.raises(error, match=message):
        fb.load_adapters(other, written)
    assert not hasattr(other.model[1], "adapter")


def test_adapters_of_other_layers_are_refused_and_the_model_stays_as_it_was(perceptron, tmp_path):
    written = fb.save_adapters(fb.prepare_adapters(fb.quantize(wide(), recipe("int8"))), tmp_path / "a")
    other = fb.quantize(perceptron(), recipe("int8"))
    with pytest.raises(CheckpointError, match="the adapter of 1 is for 256 x 64, the layer has 64 x 64"):
        fb.load_adapters(other, written)
    assert not hasattr(other.model[1], "adapter")
    assert all(own.requires_grad for own in other.model.parameters())
