"""Static ranges from BatchNorms alone, and a run without any data."""

import pytest
import torch
from torch import nn
from torch.nn import functional

import fewbit as fb
from fewbit.errors import CalibrationError
from fewbit.frontends.torch.layers import find_layers
from fewbit.interfaces import Silent
from fewbit.synthetic.batchnorm_ranges import batchnorm_ranges
from fewbit.synthetic.request import Request

SHAPE = (2, 12, 12)
STATIC = "int8 tensor asym static"


def ranges(model, shape=SHAPE, names=None, **options):
    given = fb.Synthetic(method="batchnorm", shape=shape, **options)
    layers = [layer for layer in find_layers(model) if names is None or layer.name in names]
    found, _ = batchnorm_ranges(model, layers, Request.of(model, given, 1, 0, Silent()))
    return {name: own.result() for name, own in found.items()}


def output_ranges(model, names):
    given = fb.Synthetic(method="batchnorm", shape=SHAPE)
    layers = [layer for layer in find_layers(model) if layer.name in names]
    _, found = batchnorm_ranges(model, (), Request.of(model, given, 1, 0, Silent()), outputs=layers)
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


class Before(nn.Module):
    """A layer whose output is asked for, a function, and the norm that reads it."""

    def __init__(self, function=lambda x: x):
        super().__init__()
        self.layer, self.function, self.norm = nn.Conv2d(2, 3, 1), function, norm(3)
        self.norm.running_mean.uniform_(-1, 1)
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.norm(self.function(self.layer(x)))


def test_an_output_that_a_norm_reads_has_the_mean_and_deviation_that_it_remembers():
    model = Before()
    spread = 6 * (model.norm.running_var + model.norm.eps).sqrt()
    (found,) = output_ranges(model, ["layer"]).values()
    assert torch.allclose(torch.stack(found), model.norm.running_mean + torch.stack([-spread, spread]))


@pytest.mark.parametrize("function", [nn.ReLU(), lambda x: x.mul_(3.0), lambda x: x + 1.0])
def test_an_output_that_a_norm_reads_changed_is_not_known(function):
    with pytest.raises(CalibrationError, match=r"^layer: no BatchNorm tells the range of its output; keep it,"):
        output_ranges(Before(function), ["layer"])
