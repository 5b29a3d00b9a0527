"""Data-free quantization: folding, equalization, absorption, ranges and bias correction, all by BatchNorms alone."""

import copy

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import CalibrationError, PlanError

SHAPE = (1, 15, 15)
EQUALIZED = ["batchnorm", "equalization"]
RECOVERY = {
    "transforms": ["batchnorm", {"name": "equalization", "replace_relu6": True}, "high-bias-absorption"],
    "corrections": [{"name": "bias", "means": "batchnorm"}],
}


def recipe(scheme="int8 tensor static", **further):
    rules = [fb.Rule(kind=kind, weight="int8 tensor", input=scheme) for kind in ("conv", "linear")]
    return fb.Recipe(rules, **further)


def without_data(net, own):
    return fb.quantize(copy.deepcopy(net), own, calibration=fb.Synthetic(method="batchnorm", shape=SHAPE))


def planted(net, seed=1):
    """Channels are up to thirty times as large, and what reads them as much smaller: the function is the same."""
    factors = 10 ** (2 * torch.rand(12, generator=torch.Generator().manual_seed(seed)) - 0.5)
    with torch.no_grad():
        net.norm1.weight.mul_(factors)
        net.norm1.bias.mul_(factors)
        net.deep.weight.div_(factors[:, None, None, None])
    return net


@torch.no_grad()
def test_no_data_at_all_brings_back_what_planted_ranges_cost(depthwise_nets):
    net, _, batches = depthwise_nets()
    expected = torch.cat([net(batch) for batch in batches])
    planted(net)
    ratios, agreement = [], []
    for further in ({"transforms": ["batchnorm"]}, RECOVERY):
        result = without_data(net, recipe(**further))
        found = torch.cat([result.model(batch) for batch in batches])
        ratios.append(float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum())))
        # Offsets that all outputs have in common say nothing of the input.
        classes, wanted = ((own - expected.mean(0)).argmax(1) for own in (found, expected))
        agreement.append(float((classes == wanted).float().mean()))
    assert ratios[1] > ratios[0] + 10
    assert agreement[1] > agreement[0] + 0.5


def ends(norm, factors=1.0, shift=0.0):
    """Return beta +- 6 |gamma| of channels divided by `factors`, `shift` taken off, behind ReLU."""
    beta, gamma = norm.bias.detach(), norm.weight.detach().abs()
    return tuple(((beta + sign * 6 * gamma) / factors - shift).clamp(0) for sign in (-1, 1))


def scale_of(layer):
    return float(layer.input.activation.scale)


@torch.no_grad()
def test_ranges_behind_equalized_links_are_those_of_the_norm_divided_by_the_factors(depthwise_nets):
    net = planted(depthwise_nets()[0])
    plain, even = (without_data(net, recipe(transforms=own)).model for own in (["batchnorm"], EQUALIZED))
    # A bias is divided as its row is; it is rounded to float32 each time.
    factors = {name: getattr(plain, name).bias / getattr(even, name).bias for name in ("expand", "deep")}
    assert min(float(own.max() / own.min()) for own in factors.values()) > 3
    for reader, producer, norm in (("deep", "expand", net.norm1), ("project", "deep", net.norm2)):
        low, high = ends(norm, factors[producer])
        assert scale_of(getattr(even, reader)) == pytest.approx(float(high.max() - low.min()) / 255, rel=1e-4)
        assert scale_of(getattr(plain, reader)) == pytest.approx(float(ends(norm)[1].max()) / 255, rel=1e-6)
    # What no link leads to is as it was.
    assert scale_of(even.expand) == scale_of(plain.expand)
    assert scale_of(even.out) == scale_of(plain.out)


@torch.no_grad()
def test_ranges_behind_an_absorbed_bias_end_lower_by_what_was_absorbed(depthwise_nets):
    net = depthwise_nets(padding=0, high=10.0)[0]
    plain, low = (
        without_data(net, recipe(transforms=own)).model
        for own in (["batchnorm"], ["batchnorm", "high-bias-absorption"])
    )
    taken = plain.expand.bias - low.expand.bias
    certain = (net.norm1.bias - 3 * net.norm1.weight.abs()).clamp(0)
    assert certain.max() > 5
    # The norm adds 1e-5 to its variance before it divides, and sums are rounded to float32.
    torch.testing.assert_close(taken, certain, rtol=1e-3, atol=1e-3)
    # Behind ReLU nothing is below 0, whatever was taken off.
    assert scale_of(low.deep) == pytest.approx(float(ends(net.norm1, 1.0, taken)[1].max()) / 255, rel=1e-5)
    assert scale_of(low.deep) < 0.7 * scale_of(plain.deep)


@torch.no_grad()
def test_a_range_is_not_cut_at_6_where_relu_has_come_in_the_place_of_relu6(depthwise_nets):
    net = depthwise_nets(clip=6.0, high=10.0)[0]
    cut = without_data(net, recipe(transforms=["batchnorm"])).model
    equalization = {"name": "equalization", "replace_relu6": True}
    replaced = without_data(net, recipe(transforms=["batchnorm", equalization])).model
    assert scale_of(cut.expand) == pytest.approx(6 / 255)
    assert scale_of(replaced.expand) == pytest.approx(float(ends(net.norm0)[1].max()) / 255, rel=1e-6)


@torch.no_grad()
def test_links_are_found_on_noise_where_inputs_are_rounded_as_they_come(depthwise_nets):
    net, _, batches = depthwise_nets()
    expected = torch.cat([net(batch) for batch in batches])
    planted(net)
    left = []
    for own in (["batchnorm"], EQUALIZED):
        result = without_data(net, recipe("int8 token", transforms=own))
        found = torch.cat([result.model(batch) for batch in batches])
        left.append(float(10 * torch.log10(expected.square().sum() / (found - expected).square().sum())))
    assert "equalization: 2 links were rescaled" in " ".join(result.report.remarks)
    assert result.report.calibration == "no data"
    assert left[1] > left[0] + 10


def test_links_are_not_looked_for_without_a_shape_and_the_model_is_left_alone(depthwise_nets):
    net = depthwise_nets()[0]
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(CalibrationError, match=r"shape=\("):
        fb.quantize(net, recipe("int8 token", transforms=EQUALIZED), calibration="none")
    assert all(torch.equal(own, before[name]) for name, own in net.state_dict().items())


class Bare(nn.Sequential):
    """A layer behind another without a norm."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)
        )


def test_a_layer_that_no_norm_tells_of_is_named_and_every_weight_comes_back():
    net = Bare().eval()
    before = copy.deepcopy(net.state_dict())
    given = fb.Synthetic(method="batchnorm", shape=SHAPE)
    with pytest.raises(CalibrationError, match=r"^5: no BatchNorm tells the range of its input; keep it,"):
        fb.quantize(net, fb.Recipe(recipe().rules[:1], transforms=EQUALIZED), calibration=given)
    after = net.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(own, before[name]) for name, own in after.items())


@pytest.mark.parametrize("transform", ["smoothquant", "awq"])
def test_transforms_that_measure_inputs_are_refused_and_those_that_do_not_are_not(depthwise_nets, transform):
    net, given = depthwise_nets()[0], fb.Synthetic(method="batchnorm", shape=SHAPE)
    assert fb.plan(net, recipe(**RECOVERY), calibration=given).problems == ()
    own = recipe(transforms=["batchnorm", transform])
    wanted = f"transform {transform} needs data; leave it out, or calibrate on data, or with calibration='synthetic'"
    assert wanted in fb.plan(net, own, calibration=given).problems


def test_the_empirical_correction_is_refused_with_what_does_without_data(depthwise_nets):
    net, given = depthwise_nets()[0], fb.Synthetic(method="batchnorm", shape=SHAPE)
    wanted = r"correction bias needs data; leave it out, or take means = 'batchnorm'"
    with pytest.raises(PlanError, match=wanted):
        fb.quantize(net, recipe(corrections=["bias"]), calibration=given)
