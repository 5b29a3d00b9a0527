"""Bias correction by BatchNorms: means without data, followed through activations, sums, averages and padding."""

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.nn import functional

import fewbit as fb
from fewbit.corrections import parse_correction
from fewbit.corrections.bias import CorrectBias, mean_products
from fewbit.errors import RecipeError
from fewbit.frontends.torch.known_inputs import known_inputs
from fewbit.statistics.mean import Mean

ANALYTIC = {"name": "bias", "means": "batchnorm"}
RULES = [fb.Rule(kind=kind, weight="int4 tensor") for kind in ("conv", "linear")]


def normed(channels, seed):
    """A BatchNorm with numbers of its own."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(channels).eval()
    nn.init.uniform_(norm.weight, -2, 2)
    nn.init.normal_(norm.bias, 1.0, 2.0)
    norm.running_mean.normal_()
    norm.running_var.uniform_(0.5, 2.0)
    return norm


def drawn(norm, samples, size, seed):
    """Inputs whose numbers have the mean and variance that the norm has seen."""
    rows = torch.randn(samples, norm.num_features, size, size, generator=torch.Generator().manual_seed(seed))
    return rows * norm.running_var.sqrt()[:, None, None] + norm.running_mean[:, None, None]


class Behind(nn.Module):
    """Two norms, something between, and the layer that reads it."""

    def __init__(self, between, layer):
        super().__init__()
        self.one, self.two, self.layer = normed(6, 1), normed(6, 2), layer
        self.between = between

    def forward(self, x, y):
        return self.layer(self.between(self.one(x), self.two(y)))


def conv(channels=6, **options):
    torch.manual_seed(3)
    return nn.Conv2d(channels, 6, 3, **options)


BETWEEN = {
    "nothing": (lambda a, b: a, conv()),
    "relu": (lambda a, b: a.relu(), conv()),
    "relu in place": (lambda a, b: functional.relu_(a), conv()),
    "relu6": (lambda a, b: functional.relu6(a), conv()),
    "hardtanh": (lambda a, b: functional.hardtanh(a, -0.5, 2.0), conv()),
    "clamp": (lambda a, b: a.clamp(min=-0.5, max=2.0), conv()),
    "clamp above": (lambda a, b: a.clamp(max=2.0), conv()),
    "residual": (lambda a, b: (a + b).relu(), conv()),
    "residual in place": (lambda a, b: a.add_(b).relu(), conv()),
    "joined": (lambda a, b: torch.cat([a.relu(), b], 1), conv(12)),
    "zeros at the border": (lambda a, b: a.relu(), conv(padding=1)),
    "reflected at the border": (lambda a, b: a.relu(), conv(padding=1, padding_mode="reflect")),
    "depthwise, strides": (lambda a, b: a.relu(), conv(groups=6, padding=1, stride=2, dilation=2)),
    "mean": (lambda a, b: a.relu().mean((2, 3)), nn.Linear(6, 4)),
    "pooled": (lambda a, b: functional.adaptive_avg_pool2d(a.relu(), 1).flatten(1), nn.Linear(6, 4)),
    "averages": (lambda a, b: functional.avg_pool2d(a.relu(), 2), conv(padding=1)),
    "flattened": (lambda a, b: a.relu().flatten(1), nn.Linear(6 * 7 * 7, 4)),
    "copied": (lambda a, b: functional.dropout(a.relu(), training=False).contiguous().clone(), conv()),
}
#: What the means are lost behind.
LOST = {
    "maximum": (lambda a, b: functional.max_pool2d(a, 2), conv()),
    "sigmoid": (lambda a, b: a.sigmoid(), conv()),
    "gate": (lambda a, b: a * b, conv()),
    "one side": (lambda a, b: a + b.sigmoid(), conv()),
    "relu of averages": (lambda a, b: functional.avg_pool2d(a, 2).relu(), conv()),
    "written into": (lambda a, b: _written(a.relu()), conv()),
    "positions as channels": (lambda a, b: a.transpose(1, 3), conv(7)),
    "padded averages": (lambda a, b: functional.avg_pool2d(a, 2, padding=1), conv()),
}


def _written(x):
    x[:, 0] = 5.0  # by a view of it
    return x


def inputs(samples, seed=0):
    return drawn(normed(6, 1), samples, 7, seed), drawn(normed(6, 2), samples, 7, seed + 1)


@pytest.mark.parametrize("case", BETWEEN)
def test_the_means_that_norms_tell_are_those_of_normal_inputs(case):
    model = Behind(*BETWEEN[case]).eval()
    found = known_inputs(model, ["layer"], {}, inputs(2))["layer"]
    weight = model.layer.weight.detach().reshape(len(model.layer.weight), -1)
    with torch.no_grad():
        outputs = model(*inputs(4000))
    axes = tuple(axis for axis in range(outputs.ndim) if axis != 1)
    expected = mean_products(weight, found) + model.layer.bias.detach()
    # Five standard errors, of 4000 independent samples.
    error = (
        5 * outputs.mean(tuple(axis for axis in axes if axis)).std(0) / 4000**0.5
        if outputs.ndim > 2
        else (5 * outputs.std(0) / 4000**0.5)
    )
    assert bool(((outputs.double().mean(axes) - expected).abs() < error).all())


@pytest.mark.parametrize("case", LOST)
def test_behind_what_says_nothing_of_means_nothing_is_known(case):
    assert known_inputs(Behind(*LOST[case]).eval(), ["layer"], {}, inputs(2)) == {}


def test_a_layer_that_is_called_twice_is_not_known():
    class Twice(Behind):
        def forward(self, x, y):
            return self.layer(self.one(x).relu()) + self.layer(self.two(y))

    assert known_inputs(Twice(None, conv()).eval(), ["layer"], {}, inputs(2)) == {}


@pytest.mark.parametrize("case", ["relu", "relu in place", "written into"])
def test_inference_mode_is_no_obstacle(case):
    with torch.inference_mode():
        found = known_inputs(Behind(*(BETWEEN | LOST)[case]).eval(), ["layer"], {}, inputs(2))
    assert set(found) == (set() if case in LOST else {"layer"})


def test_without_a_batch_nothing_is_known():
    assert known_inputs(Behind(*BETWEEN["relu"]).eval(), ["layer"], {}, None) == {}


def sqnr(net, batches, corrections, transforms=("batchnorm",)):
    recipe = fb.Recipe(RULES, transforms=transforms, corrections=corrections)
    return fb.quantize(copy.deepcopy(net), recipe, calibration=batches, evaluation=batches)


@pytest.mark.parametrize("clip", [None, 6.0])
def test_it_comes_close_to_measured_means_behind_folded_norms(depthwise_nets, clip):
    net, _, batches = depthwise_nets(clip=clip)
    plain, analytic, measured = (sqnr(net, batches, own).report for own in ((), (ANALYTIC,), ("bias",)))
    assert plain.output_sqnr + 3 < analytic.output_sqnr
    assert plain.output_sqnr < measured.output_sqnr
    assert "correction bias: biases of 4 layers moved, so that outputs keep their means" in analytic.remarks
    assert "stem: no BatchNorm tells the means of its input: correction bias is left out" in analytic.remarks


def test_the_formula_is_exact_for_a_normal_input():
    model = nn.Sequential(normed(6, 1), nn.ReLU(), conv()).eval()
    batch = drawn(model[0], 4000, 7, 5)
    with torch.no_grad():
        expected = model(batch).mean((0, 2, 3))
    rules = [fb.Rule(kind="conv", weight="int3 tensor")]
    moved = {}
    for name, corrections in {"none": (), "analytic": (ANALYTIC,), "measured": ("bias",)}.items():
        recipe = fb.Recipe(rules, corrections=corrections)
        done = fb.quantize(copy.deepcopy(model), recipe, calibration=[batch]).model
        with torch.no_grad():
            moved[name] = float((done(batch).mean((0, 2, 3)) - expected).abs().max())
    assert moved["measured"] < 1e-4 < moved["analytic"]  # float32 sums; the draw is not what it is drawn from
    assert moved["analytic"] < moved["none"] / 20


def test_data_serves_only_to_show_what_flows_where(depthwise_nets):
    net, _, batches = depthwise_nets()
    one, other = (sqnr(net, own, (ANALYTIC,)).model for own in (batches, [torch.zeros_like(batches[0])]))
    assert torch.equal(one.expand.bias, other.expand.bias)
    assert torch.equal(one.out.bias, other.out.bias)


def test_equalized_layers_are_corrected_by_equalized_means(depthwise_nets):
    net, _, batches = depthwise_nets()
    for transforms in (("batchnorm",), ("batchnorm", "equalization")):
        plain, analytic = (sqnr(net, batches, own, transforms).report for own in ((), (ANALYTIC,)))
        assert plain.output_sqnr + 3 < analytic.output_sqnr


@pytest.mark.parametrize("clip", [None, 6.0])
@pytest.mark.parametrize("folded", [(), ("batchnorm",)])
def test_graphs_are_corrected_as_modules_are(depthwise_nets, tmp_path, clip, folded):
    net, graph, batches = depthwise_nets(clip=clip)
    path = tmp_path / "net.onnx"
    onnx.save(graph, path)
    recipe = fb.Recipe(RULES, transforms=folded, corrections=(ANALYTIC,))
    arrays = [batch.numpy() for batch in batches]
    done = fb.quantize(str(path), recipe, calibration=arrays)
    module = fb.quantize(net, recipe, calibration=batches)
    with torch.no_grad():
        expected = module.model(batches[0]).numpy()
    found = done.model and next(iter(_run(done, arrays[0]).values()))
    # Sums are taken in another order.
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)
    for text in module.report.remarks:
        if text.startswith("correction"):
            assert text in done.report.remarks


def _run(result, batch):
    from fewbit.interfaces import frontend_of

    return frontend_of("onnx").run(result.model, batch)


def test_a_graph_needs_no_data_for_it(depthwise_nets, tmp_path):
    _, graph, batches = depthwise_nets()
    path = tmp_path / "net.onnx"
    onnx.save(graph, path)
    recipe = fb.Recipe(RULES, transforms=("batchnorm",), corrections=(ANALYTIC,))
    blind, seeing = (fb.quantize(str(path), recipe, calibration=own) for own in (None, [batches[0].numpy()]))
    a, b = (next(iter(_run(own, batches[0].numpy()).values())) for own in (blind, seeing))
    assert np.array_equal(a, b)


def test_where_means_come_from_is_an_option():
    recipe = fb.Recipe.from_text(
        'corrections = [{ name = "bias", means = "batchnorm" }]\n[[rules]]\nmatch = ".*"\nweight = "int8"'
    )
    assert recipe.corrections == (CorrectBias(means="batchnorm"),)
    with pytest.raises(RecipeError, match="means 'data' is none of calibration, batchnorm"):
        parse_correction({"name": "bias", "means": "data"})
    with pytest.raises(RecipeError, match=r"unknown option of correction 'bias': 'from'; known: means"):
        parse_correction({"name": "bias", "from": "batchnorm"})
    with pytest.raises(RecipeError, match="without a name"):
        parse_correction({"means": "batchnorm"})


def test_products_with_means_are_means_of_products_for_any_groups(xp):
    rng = np.random.default_rng(0)
    weight, rows = rng.normal(size=(6, 4)), rng.normal(size=(50, 12))
    given = Mean.init(12, xp.from_numpy(rows))
    given.update(xp.from_numpy(rows))
    found = xp.to_numpy(mean_products(xp.from_numpy(weight), given))
    expected = np.einsum("rgk,gok->rgo", rows.reshape(50, 3, 4), weight.reshape(3, 2, 4)).reshape(50, 6).mean(0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)  # float64 sums
