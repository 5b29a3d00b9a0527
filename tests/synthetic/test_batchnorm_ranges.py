"""Static ranges from BatchNorms alone, and a run without any data."""

import copy
import re

import pytest
import torch
from torch import nn
from torch.nn import functional

import fewbit as fb
from fewbit.errors import CalibrationError, PlanError
from fewbit.frontends.torch.layers import find_layers
from fewbit.interfaces import Silent
from fewbit.no_data import NoData
from fewbit.synthetic.batchnorm_ranges import batchnorm_ranges
from fewbit.synthetic.request import Request

SHAPE = (2, 12, 12)
STATIC = "int8 tensor asym static"


def ranges(model, shape=SHAPE, names=None, **options):
    given = fb.Synthetic(method="batchnorm", shape=shape, **options)
    layers = [layer for layer in find_layers(model) if names is None or layer.name in names]
    found = batchnorm_ranges(model, layers, Request.of(model, given, 1, 0, Silent()))
    return {name: own.result() for name, own in found.items()}


def norm(channels, seed=0):
    """Return a BatchNorm with shifts and gains of either sign."""
    made, draw = nn.BatchNorm2d(channels).eval(), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        made.weight.copy_(torch.randn(channels, generator=draw))
        made.bias.copy_(torch.randn(channels, generator=draw))
    return made


def ends(own, reach=6.0):
    return own.bias.detach() - reach * own.weight.detach().abs(), own.bias.detach() + reach * own.weight.detach().abs()


class Behind(nn.Module):
    """A norm, a function, and the layer whose input is asked for."""

    def __init__(self, function, layer):
        super().__init__()
        self.norm, self.function, self.layer = norm(2), function, layer

    def forward(self, x):
        return self.layer(self.function(self.norm(x)))


@pytest.mark.parametrize(
    ("function", "least", "most"),
    [
        (lambda x: x, None, None),
        (nn.ReLU(), 0.0, None),
        (nn.ReLU(inplace=True), 0.0, None),
        (nn.ReLU6(), 0.0, 6.0),
        (nn.Hardtanh(-0.5, 2.0), -0.5, 2.0),
        (lambda x: x.clamp(min=-1), -1.0, None),
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(), nn.ZeroPad2d(1)), 0.0, None),
        (nn.Sequential(nn.AdaptiveAvgPool2d(3), nn.AvgPool2d(2)), None, None),
    ],
)
def test_a_range_is_beta_and_six_gamma_cut_off(function, least, most):
    model = Behind(function, nn.Conv2d(2, 3, 1))
    low, high = ends(model.norm)
    found = ranges(model)["layer"]
    assert torch.equal(found[0], low.clamp(least, most) if (least, most) != (None, None) else low)
    assert torch.equal(found[1], high.clamp(least, most) if (least, most) != (None, None) else high)


@pytest.mark.parametrize("function", [nn.SiLU(), nn.GELU(), nn.Hardswish(), nn.LeakyReLU(0.1), nn.Sigmoid(), nn.Mish()])
def test_a_range_behind_a_function_holds_what_the_function_makes_of_it(function):
    model = Behind(function, nn.Conv2d(2, 3, 1))
    low, high = ends(model.norm)
    values = function(low + (high - low) * torch.linspace(0, 1, 10001)[:, None])
    found = ranges(model)["layer"]
    # Between the 257 points that are tried the functions bend by less than this.
    assert torch.allclose(found[0], values.amin(0), atol=2e-3) or isinstance(function, nn.Sigmoid)
    assert torch.allclose(found[1], values.amax(0), atol=2e-3) or isinstance(function, nn.Sigmoid)
    assert bool((found[0] <= values.amin(0) + 2e-3).all() & (found[1] >= values.amax(0) - 2e-3).all())


def test_sums_have_the_sum_of_variances_and_products_the_widest_ends():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.sum, self.product = norm(2), norm(2, 1), nn.Conv2d(2, 1, 1), nn.Conv2d(2, 1, 1)
            self.both, self.halved = nn.Conv2d(4, 1, 1), nn.Conv2d(2, 1, 1)

        def forward(self, x):
            a, b = self.a(x), self.b(x)
            return self.sum(a + b), self.product(a * b), self.both(torch.cat([a, b], 1)), self.halved(0.5 * a)

    model = Two()
    found = ranges(model)
    centre, gamma = model.a.bias + model.b.bias, torch.hypot(model.a.weight, model.b.weight)
    assert torch.allclose(found["sum"][0], centre - 6 * gamma)
    assert torch.allclose(found["sum"][1], centre + 6 * gamma)
    a, b = ends(model.a), ends(model.b)
    corners = torch.stack([one * two for one in a for two in b])
    assert torch.allclose(torch.stack(found["product"]), torch.stack([corners.amin(0), corners.amax(0)]))
    assert torch.equal(found["both"][1], torch.cat([a[1], b[1]]))
    assert torch.allclose(found["halved"][1], 0.5 * a[1])


def test_a_head_behind_pooling_keeps_channels_and_behind_flattened_positions_has_one_range():
    pooled = Behind(nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()), nn.Linear(2, 3))
    assert torch.equal(ranges(pooled)["layer"][1], ends(pooled.norm)[1].clamp(0))
    mean = Behind(lambda x: functional.relu(x).mean((2, 3)), nn.Linear(2, 3))
    assert torch.equal(ranges(mean)["layer"][1], ends(mean.norm)[1].clamp(0))
    flat = Behind(nn.Sequential(nn.ReLU(), nn.Flatten()), nn.Linear(288, 3))
    assert torch.equal(ranges(flat)["layer"][1], ends(flat.norm)[1].clamp(0).max().expand(288))


def test_the_range_of_the_first_layer_is_that_of_the_input():
    model = nn.Sequential(nn.Conv2d(2, 3, 1))
    assert [own.tolist() for own in ranges(model)["0"]] == [[-3.0, -3.0], [3.0, 3.0]]
    assert [own.tolist() for own in ranges(model, values=(-1, 2))["0"]] == [[-1.0, -1.0], [2.0, 2.0]]


def test_a_layer_that_runs_twice_has_the_range_of_both():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm, self.layer = norm(2), nn.Conv2d(2, 2, 1)

        def forward(self, x):
            return self.layer(self.norm(x)) + self.layer(functional.relu6(self.norm(x)))

    model = Twice()
    low, high = ends(model.norm)
    assert torch.equal(ranges(model)["layer"][0], low.clamp(max=0))
    assert torch.equal(ranges(model)["layer"][1], torch.maximum(high, high.clamp(0, 6)))


@pytest.mark.parametrize(
    "function",
    [
        nn.Conv2d(2, 2, 1),
        lambda x: x.cumsum(1),
        lambda x: x.mul_(2).add_(torch.ones(2, 1, 1)),
        lambda x: functional.pad(x, (1, 1), value=9.0),
        nn.BatchNorm2d(2, track_running_stats=False),
    ],
)
def test_a_layer_behind_something_else_is_named_with_the_remedy(function):
    with pytest.raises(CalibrationError, match=r"^layer: no BatchNorm tells the range of its input; keep it,"):
        ranges(Behind(function, nn.Conv2d(2, 3, 1)), names=["layer"])


def test_what_was_written_into_a_tensor_is_not_taken_for_what_it_was():
    def written(x):
        x[:, 0] = 100.0
        return x

    with pytest.raises(CalibrationError, match="layer: no BatchNorm tells"):
        ranges(Behind(written, nn.Conv2d(2, 3, 1)))


# A whole run.


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
        ([fb.Rule(**RULE, output=STATIC)], {}, "a static output has its range from data; round it dynamically, or"),
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
