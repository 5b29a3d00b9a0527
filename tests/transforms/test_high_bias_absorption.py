"""High-bias absorption: exact above c, along links that a raised bias has proven, measured where it is not exact."""

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import PlanError, RecipeError
from fewbit.frontends.torch.link_scope import LinkScope
from fewbit.interfaces import frontend_of
from fewbit.known_output import KnownOutput
from fewbit.schemes.notation import parse_input_scheme, parse_scheme
from fewbit.transforms import parse_transform
from fewbit.transforms.high_bias_absorption import HighBiasAbsorption
from fewbit.transforms.scope import Rounded

ABSORB = "high-bias-absorption"
BOTH = ["batchnorm", ABSORB]


def recipe(transforms, corrections=()):
    rules = [fb.Rule(kind=kind, weight="int8 channel", input="int8 tensor static") for kind in ("conv", "linear")]
    return fb.Recipe(rules, transforms=transforms, corrections=corrections)


class Pair(nn.Module):
    """Two layers and what is between them."""

    def __init__(self, first, between, second):
        super().__init__()
        self.first, self.between, self.second = first, between, second

    def forward(self, x):
        return self.second(self.between(self.first(x)))


def conv(*sizes, **options):
    torch.manual_seed(0)
    return nn.Conv2d(*sizes, **options)


PASSING = {
    "relu": Pair(conv(3, 8, 3), nn.ReLU(), conv(8, 5, 1)),
    "leaky relu": Pair(conv(3, 8, 3), nn.LeakyReLU(0.2), conv(8, 5, 3, stride=2)),
    "depthwise": Pair(conv(3, 8, 3), nn.ReLU(), conv(8, 8, 3, groups=8)),
    "in groups": Pair(conv(3, 8, 3), nn.ReLU(), conv(8, 6, 3, groups=2)),
    "maximum": Pair(conv(3, 8, 3), nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)), conv(8, 5, 1)),
    "averages, flattened": Pair(
        conv(3, 8, 3), nn.Sequential(nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten()), nn.Linear(32, 5)
    ),
    "reflected border": Pair(conv(3, 8, 3), nn.ReLU(), conv(8, 5, 3, padding=1, padding_mode="reflect")),
}
REFUSED = {
    "zeros at the border": (
        Pair(conv(3, 8, 3), nn.ReLU(), conv(8, 5, 3, padding=1)),
        "a convolution that pads with zeros",
    ),
    "padded averages": (
        Pair(conv(3, 8, 3), nn.Sequential(nn.ReLU(), nn.AvgPool2d(2, padding=1)), conv(8, 5, 1)),
        "does not add the same for every position",
    ),
    "no bias": (Pair(conv(3, 8, 3), nn.ReLU(), conv(8, 5, 1, bias=False)), "it or what reads it has no bias"),
    "no bias before": (Pair(conv(3, 8, 3, bias=False), nn.ReLU(), conv(8, 5, 1)), "it or what reads it has no bias"),
}


def absorbed(model, known, batch):
    model = model.eval()
    scope = LinkScope(model, "", frontend_of("torch").layers(model), [lambda: model(batch)])
    scope.known = {"first": known}
    schemes = dict.fromkeys(scope.layers, Rounded(parse_scheme("int8"), parse_input_scheme("int8 static")))
    return HighBiasAbsorption().rescaled(scope, schemes), scope


def high(mean=5.0):
    """What a norm would tell of channels, every other of them far above 0."""
    return KnownOutput(np.asarray([mean, 0.0] * 4), np.full(8, 0.25))


@pytest.mark.parametrize("case", PASSING)
@torch.no_grad()
def test_it_is_exact_where_every_number_is_above_c_and_can_be_taken_back(case):
    model, batch = copy.deepcopy(PASSING[case]), torch.rand(2, 3, 10, 10)
    model.first.bias.add_(6.0)  # all outputs of the first layer are above 3.5
    before, expected = copy.deepcopy(model.state_dict()), model(batch)
    (done,), scope = absorbed(model, high(), batch)
    assert done.left == ""
    assert done.shift.tolist() == [3.5, 0.0] * 4
    assert torch.equal(model.first.bias, before["first.bias"] - torch.tensor([3.5, 0.0] * 4))
    # Sums of some hundred products in float32.
    torch.testing.assert_close(model(batch), expected, rtol=1e-5, atol=1e-5)
    assert done.change < 1e-6
    scope.restorer()()
    assert all(torch.equal(own, before[name]) for name, own in model.state_dict().items())


@torch.no_grad()
def test_where_numbers_lie_below_c_the_change_is_measured():
    model, batch = copy.deepcopy(PASSING["relu"]), torch.randn(2, 3, 10, 10)
    before = model(batch)
    (done,), _ = absorbed(model, high(), batch)
    assert done.change == pytest.approx(float((model(batch) - before).norm() / before.norm()), rel=1e-4)  # float32 sums
    assert done.change > 0.1


@pytest.mark.parametrize("case", REFUSED)
@torch.no_grad()
def test_what_is_no_shift_is_left_as_it_was_and_said(case):
    model, why = REFUSED[case]
    model, batch = copy.deepcopy(model), torch.rand(2, 3, 10, 10)
    before = copy.deepcopy(model.state_dict())
    (done,), _ = absorbed(model, high(), batch)
    assert why in done.left
    assert all(torch.equal(own, before[name]) for name, own in model.state_dict().items())


@torch.no_grad()
def test_a_relu6_is_no_link_and_a_low_channel_has_nothing_to_absorb():
    batch = torch.rand(2, 3, 10, 10)
    assert absorbed(Pair(conv(3, 8, 3), nn.ReLU6(), conv(8, 5, 1)), high(), batch)[0] == []
    (done,), _ = absorbed(copy.deepcopy(PASSING["relu"]), high(1.0), batch)
    assert done.left == "no channel lies 3 deviations above 0"


def test_it_goes_by_the_norms_that_were_folded_and_says_what_it_did(depthwise_nets):
    net, _, batches = depthwise_nets(padding=0, high=6.0)
    report = fb.quantize(net, recipe(BOTH), calibration=batches).report
    assert any(text.startswith("high-bias-absorption: 2 links were absorbed, up to") for text in report.remarks)
    padded, _, _ = depthwise_nets(padding=1, high=6.0)
    said = fb.quantize(padded, recipe(BOTH), calibration=batches).report.remarks
    assert any(text.startswith("high-bias-absorption: 1 link was absorbed, up to") for text in said)
    assert any(
        text.startswith("high-bias-absorption: expand left as it was: what reads it does not add") for text in said
    )


def test_inputs_of_narrow_ranges_lose_less(depthwise_nets):
    net, _, batches = depthwise_nets(padding=0, high=20.0)
    plain, own = (
        fb.quantize(copy.deepcopy(net), recipe(given), calibration=batches, evaluation=batches).report.output_sqnr
        for given in (["batchnorm"], BOTH)
    )
    assert own > plain + 1  # of four inputs two are narrower now


@pytest.mark.parametrize("means", ["calibration", "batchnorm"])
@torch.no_grad()
def test_bias_corrections_aim_at_the_shifted_means(depthwise_nets, means):
    net, _, batches = depthwise_nets(padding=0, high=6.0)
    with torch.no_grad():
        expected = torch.cat([net(batch) for batch in batches]).mean(0)
    rules = [fb.Rule(kind=kind, weight="int4 tensor", input="int8 tensor static") for kind in ("conv", "linear")]
    errors = []
    for corrections in ((), ({"name": "bias", "means": means},)):
        made = fb.Recipe(rules, transforms=["batchnorm", "equalization", ABSORB], corrections=corrections)
        done = fb.quantize(copy.deepcopy(net), made, calibration=batches).model
        errors.append(float((torch.cat([done(batch) for batch in batches]).mean(0) - expected).abs().max()))
    assert errors[1] < errors[0] / 2


def test_graphs_absorb_what_modules_absorb(depthwise_nets, tmp_path):
    net, graph, batches = depthwise_nets(padding=1, high=6.0)
    path = tmp_path / "net.onnx"
    onnx.save(graph, path)
    arrays = [batch.numpy() for batch in batches]
    done = fb.quantize(str(path), recipe(BOTH), calibration=arrays)
    module = fb.quantize(net, recipe(BOTH), calibration=batches)
    own = [text for text in done.report.remarks if text.startswith(ABSORB)]
    other = [text for text in module.report.remarks if text.startswith(ABSORB)]
    assert [text.partition(";")[0] for text in own] == [text.partition(";")[0] for text in other]
    with torch.no_grad():
        expected = module.model(batches[0]).numpy()
    found = frontend_of("onnx").run(done.model, arrays[0])["y"]
    # A number that lies within a rounding of the middle of two steps goes either way.
    assert np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def test_options_and_combinations_are_checked(depthwise_nets):
    assert parse_transform({"name": ABSORB, "deviations": 2}) == HighBiasAbsorption(deviations=2)
    with pytest.raises(RecipeError, match="deviations -1 is no number from 0; 3 is usual"):
        HighBiasAbsorption(deviations=-1)
    net, _, _ = depthwise_nets()
    weights = fb.Recipe([fb.Rule(".*", weight="int8")], transforms=BOTH)
    for made, why in {
        weights: "narrows the ranges of inputs, and no rule rounds one to a scale; leave it out",
        recipe([ABSORB]): 'goes by the numbers of folded BatchNorms; put "batchnorm" before it',
        recipe(["batchnorm", ABSORB, "equalization"]): "and here equalization follows it; swap them",
    }.items():
        assert any(why in problem for problem in fb.plan(net, made).problems)
    assert not fb.plan(net, recipe(["batchnorm", "equalization", ABSORB])).problems
    with pytest.raises(PlanError, match='put "batchnorm" before it'):
        fb.quantize(net, recipe([ABSORB]), calibration=[torch.randn(2, 1, 15, 15)])
