"""Whole runs without any data: what is rounded by what BatchNorms tell, and what a plan says of the rest."""

import copy
import re

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import CalibrationError, PlanError
from fewbit.no_data import NoData

SHAPE = (2, 12, 12)
STATIC = "int8 tensor asym static"


def ends(own, reach=6.0):
    return own.bias.detach() - reach * own.weight.detach().abs(), own.bias.detach() + reach * own.weight.detach().abs()


def quantized(network, recipe="w8a8-static", **options):
    given = fb.Synthetic(method="batchnorm", shape=SHAPE, **options)
    return fb.quantize(copy.deepcopy(network), recipe, calibration=given)


def test_a_static_preset_without_data_has_these_ranges_and_loses_little(network, real):
    result = quantized(network)
    assert "3 BatchNorms were folded into the layers before them" in result.report.remarks
    low, high = (own.clamp(0) for own in ends(network.first_norm))
    activation = result.model.depthwise.input.activation
    scale = float((high.max() - low.min()) / 255)
    assert float(activation.scale) == pytest.approx(scale, rel=1e-6)
    assert [row.algorithm.name for row in result.plan.rows] == ["nearest"] * 4
    assert result.plan.adaptations[-1] == "no data: weights are rounded to nearest in the place of gptq"
    assert result.report.calibration == (
        "no data; static ranges from BatchNorm, beta +- 6 |gamma|, the input of the model taken to be 0 +- 3"
    )
    with torch.no_grad():
        wanted, got = network(real[0]), result.model(real[0])
    # 8 bits on twice the range that is needed still leave 30 dB.
    assert float(10 * torch.log10(wanted.square().sum() / (got - wanted).square().sum())) > 30


def test_static_outputs_have_the_ranges_of_the_norms_that_were_folded_in_or_stand(network, real):
    rule = fb.Rule(kind="conv", weight="int8 channel", output=STATIC)
    recipes = [fb.Recipe([rule, fb.keep(".*")], transforms=own) for own in (["batchnorm"], [])]
    folded, standing = (quantized(network, recipe) for recipe in recipes)
    low, high = ends(network.first_norm)
    scale = float((high.max().clamp(0) - low.min().clamp(max=0)) / 255)
    assert float(folded.model.first.output.activation.scale) == pytest.approx(scale, rel=1e-6)
    mean, deviation = network.first_norm.running_mean, network.first_norm.running_var.add(1e-5).sqrt()
    scale = float(((mean + 6 * deviation).max().clamp(0) - (mean - 6 * deviation).min().clamp(max=0)) / 255)
    assert float(standing.model.first.output.activation.scale) == pytest.approx(scale, rel=1e-6)
    assert folded.report.calibration.startswith("no data; static ranges from BatchNorm")
    with torch.no_grad():
        wanted = network(real[0])
        for result in (folded, standing):
            # 8 bits on twice the range that is needed still leave 25 dB behind three such layers.
            assert float(10 * torch.log10(wanted.square().sum() / (result.model(real[0]) - wanted).square().sum())) > 25
    with pytest.raises(CalibrationError, match=r"^head: no BatchNorm tells the range of its output"):
        quantized(network, fb.Recipe([fb.Rule(kind="linear", weight="int8", output=STATIC), fb.keep(".*")]))


def test_a_graph_is_written_on_images_that_the_module_makes(network, real, tmp_path):
    ort = pytest.importorskip("onnxruntime")
    given = fb.Synthetic(shape=SHAPE, samples=16, iterations=5)
    result = fb.quantize(copy.deepcopy(network), "w8a8-static", to="ort-cpu", calibration=given)
    result.save(tmp_path / "net.onnx")
    session = ort.InferenceSession(tmp_path / "net.onnx", providers=["CPUExecutionProvider"])
    (name,) = (own.name for own in session.get_inputs())
    (found,) = session.run(None, {name: real[0].numpy()})
    with torch.no_grad():
        wanted = result.model(real[0])
    # A sum in another order may take an input to the next code.
    assert (found.argmax(1) == wanted.argmax(1).numpy()).mean() > 0.99


def test_a_graph_with_ranges_between_layers_is_not_written_without_images(network, tmp_path):
    given = fb.Synthetic(method="batchnorm", shape=SHAPE)
    result = fb.quantize(network, "w8a8-static", to="ort-cpu", calibration=given)
    with pytest.raises(CalibrationError, match=r"needs ranges of 4 values between layers, .* or 'synthetic' with a"):
        result.save(tmp_path / "net.onnx")
    assert not list(tmp_path.iterdir())


def test_two_runs_give_the_same_numbers(network):
    one, two = (quantized(network).model.state_dict() for _ in range(2))
    assert list(one) == list(two)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_norms_are_folded_without_data_where_the_shape_is_known(network):
    assert "3 BatchNorms were folded" in quantized(network, "w8a8").report.remarks[0]
    said = fb.quantize(copy.deepcopy(network), "w8a8", calibration="none").report.remarks[0]
    assert "BatchNorm stays, for no data shows what it follows" in said


def test_the_input_has_the_values_that_are_said(network):
    result = quantized(network, values=(0, 2))
    assert float(result.model.first.input.activation.scale) == pytest.approx(2 / 255)
    assert result.report.calibration.endswith("the input of the model as given")


def test_nothing_is_needed_where_nothing_is_static():
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 4))
    result = fb.quantize(model, "w4a8", calibration="none")
    assert {row.algorithm.name for row in result.plan.rows} == {"nearest"}
    assert result.report.calibration == "no data"
    whole = fb.quantize(nn.Sequential(nn.Linear(64, 4)), "w8a16", calibration="none")
    assert whole.plan.adaptations == ()


def test_a_model_that_says_no_shape_is_refused_and_left_alone(network):
    before = copy.deepcopy(network.state_dict())
    with pytest.raises(CalibrationError, match=r"calibration=Synthetic\(method='batchnorm', shape=\(2, 224, 224\)\)"):
        fb.quantize(network, "w8a8-static", calibration="none")
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


RULE = {"kind": "conv", "weight": "int8 channel"}


@pytest.mark.parametrize(
    ("rules", "options", "message"),
    [
        ([fb.Rule(**RULE, algorithm="gptq")], {}, "gptq needs data, and there is to be none; use nearest or hqq, or"),
        (
            [fb.Rule(**RULE, input=f"{STATIC} entropy")],
            {},
            "range entropy of an input needs data; use minmax",
        ),
        ([fb.Rule(**RULE, output=f"{STATIC} entropy")], {}, "range entropy of an output needs data; use minmax"),
        (
            [fb.Rule(**RULE)],
            {"corrections": ["bias"]},
            "correction bias needs data; leave it out, or",
        ),
        ([fb.Rule(kind="conv", weight="int4 channel clip")], {}, "range clip looks at outputs on data; use minmax or"),
        ([fb.Rule(**RULE)], {"transforms": ["smoothquant"]}, "transform smoothquant needs data; leave it out, or"),
        ([fb.Rule(**RULE, input=STATIC)], {"transforms": ["outlier-splitting"]}, "changes what goes into layers, and"),
    ],
)
def test_what_a_recipe_asks_for_by_name_is_a_problem_of_the_plan(rules, options, message, network):
    recipe = fb.Recipe(rules, **options)
    assert any(message in problem for problem in fb.plan(network, recipe, calibration="none").problems)
    assert not any(message in problem for problem in fb.plan(network, recipe).problems)
    with pytest.raises(PlanError, match=re.escape(message)):
        fb.quantize(network, recipe, calibration="none")


def test_an_onnx_model_is_told_where_its_batchnorms_have_gone():
    made = fb.plan(nn.Sequential(nn.Conv2d(2, 2, 1)), fb.Recipe([fb.Rule(".*", weight="int8", input=STATIC)]))
    with pytest.raises(CalibrationError, match="read from the BatchNorms of a torch module, and this is an ONNX model"):
        NoData.of("none").statistics(made, object())
