"""Cross-layer equalization: exact, rows and columns get the same range, chains settle, ReLU6 is left alone."""

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
from fewbit.schemes.notation import parse_scheme
from fewbit.transforms import parse_transform
from fewbit.transforms.equalization import Equalization
from fewbit.transforms.scope import Rounded


def uneven(model):
    """Rows of every layer differ by up to a hundredfold, as those of MobileNets do."""
    with torch.no_grad():
        for layer in model.modules():
            if isinstance(layer, nn.Linear | nn.Conv2d):
                rows = 10 ** (2 * torch.rand(len(layer.weight)) - 1)
                layer.weight.mul_(rows.reshape(-1, *[1] * (layer.weight.ndim - 1)))
                layer.bias.mul_(rows)
    return model.eval()


def linears(between=nn.ReLU, seed=0, *, rows=True):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 24), between(), nn.Linear(24, 24), between(), nn.Linear(24, 8))
    return uneven(model) if rows else model.eval()


def convolutions(between=nn.ReLU, seed=0, *, rows=True):
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 1), between(), nn.Conv2d(12, 12, 3, groups=12, padding=1), between(), nn.Conv2d(12, 5, 1)
    )
    return uneven(model) if rows else model.eval()


CASES = {"linear": (linears, (32, 16)), "depthwise": (convolutions, (4, 3, 8, 8))}
LAYERS = ("0", "2", "4")


def equalized(model, batch, **options):
    layers = frontend_of("torch").layers(model)
    scope = LinkScope(model, "", layers, [lambda: model(batch)])
    schemes = {name: Rounded(parse_scheme("int8 tensor")) for name in LAYERS}
    return Equalization(**options).rescaled(scope, schemes), scope


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_the_equalized_model_computes_the_same_and_ranges_agree(case):
    build, shape = CASES[case]
    model, batch = build(), torch.randn(shape)
    before, others = copy.deepcopy(model), torch.randn(shape)
    done, scope = equalized(model, batch, rounds=200)
    assert [(own.link.producer, own.link.consumers) for own in done] == [("0", ("2",)), ("2", ("4",))]
    # Each weight is rounded to float32 once in every pass.
    torch.testing.assert_close(model(others), before(others), rtol=1e-4, atol=1e-5)
    for first, second in (("0", "2"), ("2", "4")):
        # Where the passes end factors differ from 1 by less than a thousandth, ranges by less than two.
        ranges = scope.output_magnitudes(first) / scope.input_magnitudes(second)
        assert ranges == pytest.approx(1.0, abs=3e-3)
    scope.restorer()()
    assert all(torch.equal(own, old) for own, old in zip(model.parameters(), before.parameters(), strict=True))


@torch.no_grad()
def test_the_input_magnitudes_of_groups_are_those_of_their_own_channels():
    _, scope = equalized(convolutions(), torch.randn(1, 3, 4, 4), rounds=1)
    depthwise = scope.weight("2")
    assert scope.input_magnitudes("2").tolist() == depthwise.abs().amax(1).tolist()
    assert scope.input_magnitudes("4").tolist() == scope.weight("4").abs().amax(0).tolist()


def gained(model, shape):
    """Return by how many dB the output is nearer with equalization."""
    batches = [torch.randn(shape, generator=torch.Generator().manual_seed(0))]
    plain, even = (
        fb.quantize(
            copy.deepcopy(model), fb.Recipe([fb.Rule(".*", weight="int6 tensor")], transforms=own),
            calibration=batches, evaluation=batches,
        ).report
        for own in ([], ["equalization"])
    )  # fmt: skip
    assert even.remarks[0].startswith("equalization: 2 links were rescaled, up to ")
    return even.output_sqnr - plain.output_sqnr


@pytest.mark.parametrize("case", CASES)
def test_weights_of_one_scale_lose_less_with_it(case):
    build, shape = CASES[case]
    # Rows alone are uneven here, columns not: one network gains 10 dB, and one loses 1.
    assert np.mean([gained(build(seed=seed), shape) for seed in range(10)]) > 3


@torch.no_grad()
def planted(model):
    """Rows are up to ten times as large or small, what reads them the other way round: the function is the same."""
    for first, second in (model[:3:2], model[2::2]):
        rows = 10 ** (2 * torch.rand(len(first.weight)) - 1)
        along = [-1, *[1] * (first.weight.ndim - 1)]
        first.weight.mul_(rows.reshape(along))
        first.bias.mul_(rows)
        depthwise = getattr(second, "groups", 1) > 1
        second.weight.div_(rows.reshape(along if depthwise else [1, *along[:-1]]))
    return model


@pytest.mark.parametrize("case", CASES)
def test_planted_ranges_are_evened_out_whatever_the_network(case):
    build, shape = CASES[case]
    # Spreads of a hundredfold take most of the 6 bits of most rows; 19 to 32 dB come back.
    assert min(gained(planted(build(seed=seed, rows=False)), shape) for seed in range(8)) > 15


@torch.no_grad()
def test_bias_correction_aims_at_the_means_of_the_equalized_model():
    model, batches = linears(), [torch.randn(64, 16) for _ in range(2)]
    expected = torch.cat([model[0](batch) for batch in batches]).mean(0)
    (first, _), _ = equalized(copy.deepcopy(model), batches[0])
    factors = torch.from_numpy(first.factors).float()
    recipe = fb.Recipe([fb.Rule(".*", weight="int4 tensor")], transforms=["equalization"], corrections=["bias"])
    result = fb.quantize(model, recipe, calibration=batches)
    found = torch.cat([result.model[0](batch) for batch in batches]).mean(0)
    # Sums of 128 rows in float32; factors lie between 0.1 and 10.
    torch.testing.assert_close(found * factors, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_a_relu6_is_passed_by_no_factor_and_that_is_said():
    model, batch = convolutions(nn.ReLU6), torch.randn(4, 3, 8, 8)
    done, _ = equalized(model, batch)
    assert list(done) == []
    recipe = fb.Recipe([fb.Rule(".*", weight="int6 tensor")], transforms=["equalization"])
    report = fb.quantize(model, recipe, calibration=[batch]).report
    assert report.remarks[0] == "equalization: no link of the model was rescaled"


@torch.no_grad()
def test_a_depthwise_triple_settles_where_the_closed_form_is():
    model, batch = convolutions(), torch.randn(4, 3, 8, 8)
    first, depthwise, last = (model[int(name)].weight for name in LAYERS)
    ranges = first.abs().amax((1, 2, 3)), depthwise.abs().amax((1, 2, 3)), last.abs().amax((0, 2, 3))
    expected = (ranges[0] * ranges[1] * ranges[2]) ** (1 / 3)
    equalized(model, batch, rounds=200)
    first, depthwise, last = (model[int(name)].weight for name in LAYERS)
    for found in (first.abs().amax((1, 2, 3)), depthwise.abs().amax((1, 2, 3)), last.abs().amax((0, 2, 3))):
        torch.testing.assert_close(found, expected, rtol=3e-3, atol=0)  # where the passes end


class Called(nn.Sequential):
    """A ReLU6 that is no module."""

    def forward(self, x):
        return self[1](nn.functional.relu6(self[0](x)))


@torch.no_grad()
def test_a_relu6_gives_way_where_that_is_asked_for_and_the_change_is_measured():
    model, batch = convolutions(nn.ReLU6), torch.randn(4, 3, 8, 8)
    before = model(batch)
    transforms = [{"name": "equalization", "replace_relu6": True}]
    rules = [fb.Rule(".*", weight="int6 tensor")]
    plain, even = (
        fb.quantize(copy.deepcopy(model), fb.Recipe(rules, transforms=own), calibration=[batch], evaluation=[batch])
        for own in ([], transforms)
    )
    relu = convolutions()
    relu.load_state_dict(model.state_dict())
    change = float((relu(batch) - before).norm() / before.norm())
    assert even.report.remarks[0] == (
        f"equalization: 2 ReLU6 became ReLU, which changes the output by {100 * change:.3g} % of its size"
    )
    assert even.report.remarks[1].startswith("equalization: 2 links were rescaled")
    assert not any(isinstance(own, nn.ReLU6) for own in even.model.modules())
    assert any(isinstance(own, nn.ReLU6) for own in plain.model.modules())


@torch.no_grad()
def test_a_run_that_fails_gives_the_relu6_back(monkeypatch):
    model, batch = convolutions(nn.ReLU6), torch.randn(4, 3, 8, 8)

    def fails(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fewbit.pipeline.solve", fails)
    recipe = fb.Recipe(
        [fb.Rule(".*", weight="int6 tensor")], transforms=[{"name": "equalization", "replace_relu6": True}]
    )
    with pytest.raises(KeyboardInterrupt):
        fb.quantize(model, recipe, calibration=[batch])
    assert sum(isinstance(own, nn.ReLU6) for own in model.modules()) == 2


def test_a_relu6_that_is_called_as_a_function_stays_and_that_is_said():
    recipe = fb.Recipe(
        [fb.Rule(".*", weight="int6 tensor")], transforms=[{"name": "equalization", "replace_relu6": True}]
    )
    report = fb.quantize(Called(nn.Linear(4, 4), nn.Linear(4, 4)), recipe, calibration=[torch.randn(4, 4)]).report
    assert "replace_relu6 found no ReLU6 among the modules; one that is called as a function stays" in report.remarks[0]


def test_files_that_are_read_into_the_model_as_it_was_keep_the_relu6():
    recipe = fb.Recipe(
        [fb.Rule(".*", weight="int8 channel")], transforms=[{"name": "equalization", "replace_relu6": True}]
    )
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU6(), nn.Linear(4, 4))
    report = fb.quantize(model, recipe, calibration=[torch.randn(4, 4)], to="compressed-tensors").report
    assert "equalization, replace_relu6 is left out: compressed-tensors files keep every layer" in report.remarks[0]


def test_graphs_lose_their_relu6_too(depthwise_nets, tmp_path):
    net, graph, batches = depthwise_nets(clip=6.0, high=3.0)
    path = tmp_path / "net.onnx"
    onnx.save(graph, path)
    recipe = fb.Recipe(
        [fb.Rule(kind=kind, weight="int6 tensor") for kind in ("conv", "linear")],
        transforms=["batchnorm", {"name": "equalization", "replace_relu6": True}],
    )
    said = [
        fb.quantize(model, recipe, calibration=given).report.remarks
        for model, given in ((net, batches), (str(path), [batch.numpy() for batch in batches]))
    ]
    assert said[0][1].startswith("equalization: 4 ReLU6 became ReLU, which changes the output by ")
    assert said[1][1] == said[0][1]
    assert said[0][2].split(",")[0] == said[1][2].split(",")[0] == "equalization: 2 links were rescaled"


def test_links_from_norms_are_not_for_it(outliers):
    model, batches = outliers
    recipe = fb.Recipe([fb.Rule(".*", weight="int8 channel")], transforms=["equalization"])
    report = fb.quantize(model, recipe, calibration=batches).report
    assert report.remarks[0].endswith("up -> down 3")
    assert report.layers[0].notes == ()


def test_options_and_combinations_are_checked(outliers):
    assert parse_transform({"name": "equalization", "rounds": 3}) == Equalization(rounds=3)
    with pytest.raises(RecipeError, match="rounds 0 is no number of passes"):
        Equalization(rounds=0)
    with pytest.raises(RecipeError, match="replace_relu6 = 1 is not true or false"):
        Equalization(replace_relu6=1)
    model, batches = outliers
    recipe = fb.Recipe([fb.Rule(".*", weight="fp16")], transforms=["equalization"])
    with pytest.raises(PlanError, match="no weight has one; leave it out"):
        fb.quantize(model, recipe, calibration=batches)
