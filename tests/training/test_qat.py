"""Training with rounding in the loop: what it computes is what comes out, and nothing of it stays behind."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

import fewbit as fb
from fewbit.errors import PlanError, RecipeError
from fewbit.training.gradients import GRADIENTS
from fewbit.training.schedule import STEP

RECIPES = ["w8a8-static", "w8a8", "w4a8", "w4a16-asym", "fp8-static", "nf4"]


@pytest.mark.parametrize("gradient", GRADIENTS)
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_finished_model_has_the_numbers_that_training_has_seen(
    recipe, gradient, images, convolutional, train, outputs
):
    model = convolutional()
    fb.prepare_qat(model, recipe, training=fb.Training(gradient=gradient), batch=images())
    before = {name: value.detach().clone() for name, value in model.named_parameters()}
    train(model, 4)
    after = dict(model.named_parameters())
    unmoved = [name for name, value in before.items() if value.requires_grad and torch.equal(after[name], value)]
    assert not unmoved
    seen = outputs(model)
    head = model[-1].weight.detach().clone()
    result = fb.finish_qat(model)
    assert torch.equal(result.model[-1].weight, head)
    # Folding a BatchNorm changes the last bits of what is summed, which may take an input to the next code.
    assert torch.allclose(outputs(result.model), seen, atol=1e-2 if result.plan.rows[0].input else 1e-6)
    assert not any(parametrize.is_parametrized(module) for module in result.model.modules())
    assert STEP not in dict(result.model.named_buffers())


@pytest.mark.parametrize(
    "scheme", ["q4_0", "q8_0", "mxfp4", "nvfp4", "int4 g32", "int2 g64 asym", "e2m1 channel", "ternary channel"]
)
def test_weights_of_every_kind_of_scheme_come_out_as_they_were_trained(scheme, perceptron, train):
    model = perceptron()
    fb.prepare_qat(model, fb.Recipe([fb.keep("3"), fb.Rule(kind="linear", weight=scheme)]))
    train(model, 3)
    trained = model[1].weight.detach().clone()
    result = fb.finish_qat(model)
    assert str(result.plan.rows[0].scheme) == scheme
    assert torch.equal(result.model[1].qtensor.dequantize(), trained)


def test_an_output_and_a_bias_are_rounded_too(perceptron, train, outputs):
    rule = fb.Rule(kind="linear", weight="int8", input="int8 static", output="int8 static", bias="int32")
    model = perceptron()
    fb.prepare_qat(model, fb.Recipe([rule]))
    train(model, 3)
    seen = outputs(model)
    result = fb.finish_qat(model)
    step = float(result.model[3].output.activation.scale)
    # A bias in int32 may move an output that lies between two levels by one of them.
    assert float((outputs(result.model) - seen).abs().max()) <= 1.001 * step
    assert result.model[3].integer_bias is not None


def test_training_in_the_loop_beats_rounding_afterwards_at_two_bits(labels, perceptron, train, outputs):
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int2 channel")])
    trained = train(perceptron(), 60)
    rounded, prepared = copy.deepcopy(trained), copy.deepcopy(trained)
    fb.quantize(rounded, recipe)
    fb.prepare_qat(prepared, recipe)
    train(prepared, 60)
    fb.finish_qat(prepared)

    def loss(model):
        return float(nn.functional.cross_entropy(outputs(model), labels()))

    assert loss(prepared) < 0.5 * loss(rounded)


def test_learned_ranges_of_channels_begin_with_their_extremes():
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(8, 4)), torch.randn(32, 8) * torch.arange(1.0, 9.0)
    fb.prepare_qat(model, fb.Recipe([fb.Rule("0", weight="int8", input="int8 static channel sym")]), batch=batch)
    scale = model[0].input_quantizer.activation.scale
    assert torch.allclose(scale, batch.abs().amax(0) / 127.5, rtol=1e-3)  # rounded to float16


def test_the_report_is_that_of_quantize(images, convolutional, train):
    model = fb.prepare_qat(convolutional(), "w4a8", batch=images())
    train(model, 3)
    report = fb.finish_qat(model, evaluation=[images()]).report
    assert {layer.algorithm for layer in report.layers} == {"training, lsq"}
    assert report.output_sqnr > 5
    assert all(layer.weight_sqnr > 5 for layer in report.layers)
    assert "2 BatchNorms were folded into the layers before them after training" in report.remarks


def test_what_goes_straight_through_for_want_of_a_range_is_said(perceptron):
    rules = [fb.Rule("1", weight="q4_0"), fb.Rule("3", weight="int4 g32")]
    model = fb.prepare_qat(perceptron(), fb.Recipe(rules))
    remarks = fb.finish_qat(model).report.remarks
    assert "1: no range to learn in q4_0, so that gradients went straight through" in remarks


def test_a_trained_model_is_saved_and_loaded(tmp_path, perceptron, train, outputs):
    model = fb.prepare_qat(perceptron(), "w8a8-static")
    train(model, 3)
    result = fb.finish_qat(model)
    result.save(tmp_path / "out")
    loaded = fb.load(tmp_path / "out", into=perceptron())
    assert torch.equal(outputs(loaded.model), outputs(result.model))


@pytest.mark.parametrize(
    ("recipe", "message"),
    [
        (fb.Recipe([fb.Rule(kind="linear", weight="int4 g32")], transforms=["smoothquant"]), "transform smoothquant"),
        (fb.Recipe([fb.Rule(kind="linear", weight="int4 g32")], corrections=["bias"]), "correction bias"),
        (fb.Recipe([fb.Rule(kind="linear", weight="kmeans4")]), "learns its levels once"),
        (fb.Recipe([fb.Rule(kind="linear", weight="int8", input="nvfp4 static")]), "training fixes no scale of scales"),
        (fb.Recipe([fb.Rule("other", weight="int4 g32")]), "other"),
    ],
)
def test_what_training_cannot_do_is_refused_and_the_model_stays_as_it_was(recipe, message, images, perceptron):
    model = perceptron()
    with pytest.raises(PlanError, match=message):
        fb.prepare_qat(model, recipe, batch=images())
    assert not any(parametrize.is_parametrized(module) for module in model.modules())


def test_calls_in_the_wrong_order_are_refused(perceptron):
    model = perceptron()
    with pytest.raises(PlanError, match="not prepared for training"):
        fb.finish_qat(model)
    with pytest.raises(PlanError, match="not prepared for training"):
        fb.level_distance(model)
    fb.prepare_qat(model, "w4a16")
    with pytest.raises(PlanError, match="prepared already"):
        fb.prepare_qat(model, "w4a16")
    with pytest.raises(RecipeError, match="takes a torch module in memory, not a str"):
        fb.prepare_qat("smollm2", "w4a16")
