"""AWQ: exact in float, less error of the consumers' outputs, never more on the rows that it has seen."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import PlanError, RecipeError
from fewbit.frontends.torch.link_scope import LinkScope
from fewbit.interfaces import frontend_of
from fewbit.schemes.notation import parse_input_scheme, parse_scheme
from fewbit.transforms import parse_transform
from fewbit.transforms.awq import Awq, factors_of
from fewbit.transforms.output_error import OutputError
from fewbit.transforms.scope import Rounded


def salient(seed=0):
    """A norm one of whose channels is far larger than the others, before a linear layer; and batches."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 48)).eval()
    with torch.no_grad():
        model[0].weight[5] = 40.0
    return model, [torch.randn(64, 64) for _ in range(4)]


def recipe(*transforms, weight="int3 g32 asym", given=None):
    return fb.Recipe([fb.Rule(kind="linear", weight=weight, input=given)], transforms=transforms)


def scope_of(model, batches):
    layers = frontend_of("torch").layers(model)
    return LinkScope(model, "", layers, [lambda batch=batch: model(batch) for batch in batches])


def test_the_rescaled_model_computes_the_same():
    model, batches = salient()
    before, others = copy.deepcopy(model), torch.randn(16, 64)
    with torch.no_grad():
        scope = scope_of(model, batches)
        (done,) = Awq().rescaled(scope, {"1": Rounded(parse_scheme("int3 g32 asym"))})
        assert done.link.producer == "0"
        # The weights are rounded to float32 once more; 40 times a row's share is the largest product.
        torch.testing.assert_close(model(others), before(others), rtol=1e-5, atol=1e-4)
        assert not torch.equal(model[1].weight, before[1].weight)
        scope.restorer()()
    assert all(torch.equal(own, old) for own, old in zip(model.parameters(), before.parameters(), strict=True))


@pytest.mark.parametrize("given", [None, "int8"])
@pytest.mark.parametrize("seed", range(3))
def test_a_salient_channel_costs_less_with_it(seed, given):
    model, batches = salient(seed)
    plain, scaled = (
        fb.quantize(
            copy.deepcopy(model), recipe(*own, given=given), calibration=batches, evaluation=[torch.randn(256, 64)]
        ).report
        for own in ([], ["awq"])
    )
    # One channel of 64 has nearly all of the power; to double it halves its error, 6 dB, and costs others little.
    assert scaled.output_sqnr > plain.output_sqnr + 3


def test_the_loss_is_the_error_of_the_consumers_outputs():
    rng = np.random.default_rng(0)
    rows, weight = rng.normal(size=(50, 8)).astype(np.float32), rng.normal(size=(6, 8)).astype(np.float32)
    rows[3] = 0.0
    scheme, given = parse_scheme("int4 channel"), parse_input_scheme("int8 token sym")
    columns = np.exp2(np.arange(8.0) - 4)
    found = OutputError(rows, [(weight, Rounded(scheme, given))])(columns)

    def rounded(values):  # int4 and int8, full range, a scale a row: absmax over 7.5 and 127.5
        reach = 7.5 if len(values) == len(weight) else 127.5
        # In float32, since the largest of each row lies on a tie but for its rounding.
        scale = np.abs(values).max(axis=1, keepdims=True) * np.float32(1 / reach)
        scale = np.where(scale > 0, scale, np.float32(1))
        return np.clip(np.rint(values * (1 / scale)), -reach - 0.5, reach - 0.5).astype(np.float64) * scale

    expected = rows.astype(np.float64) @ weight.T.astype(np.float64)
    powers = columns.astype(np.float32)
    error = rounded(rows / powers) @ rounded(weight * powers).T - expected
    power = np.square(rows).sum(axis=1, keepdims=True)
    share = np.where(power > 0, 1 / np.where(power > 0, power, 1), 0)
    # float32 against float64; a tie that falls the other way would show as a hundred times that.
    assert found == pytest.approx((error**2 * share).sum() / (expected**2 * share).sum(), rel=1e-4)


def test_no_factor_is_kept_where_none_is_better():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 8)).eval()
    with torch.no_grad():
        model[1].weight.sign_()
    result = fb.quantize(model, recipe("awq", weight="int4 g32 narrow"), calibration=[torch.randn(64, 32)])
    assert result.report.remarks[0] == "awq: no link of the model was rescaled"
    assert bool((model[0].weight == 1.0).all())


def test_the_grid_holds_0_and_1_and_both_forms():
    inputs, columns = np.asarray([8.0, 2.0, 1.0]), np.asarray([0.5, 1.0, 0.25])
    trials = dict(Awq(steps=4)._trials(inputs, columns))
    assert list(trials) == [
        "ratio 0.00 by weights", "ratio 0.25", "ratio 0.25 by weights", "ratio 0.50", "ratio 0.50 by weights",
        "ratio 0.75", "ratio 0.75 by weights", "ratio 1.00",
    ]  # fmt: skip
    whole = trials["ratio 1.00"]
    np.testing.assert_allclose(whole / whole[2], inputs, rtol=1e-12)
    own = trials["ratio 0.00 by weights"]
    np.testing.assert_allclose(own * columns / (own * columns)[0], 1.0, rtol=1e-12)
    assert factors_of(np.zeros(2), np.ones(2), (0.5, 0.0)).tolist() == [1.0, 1.0]


def test_grouped_query_values_are_scaled_with_all_heads_that_read_them(tiny_llama):
    model, batches = tiny_llama
    before = copy.deepcopy(model)
    rules = [fb.keep(kind="head"), fb.keep(kind="embedding"), fb.Rule(kind="linear", weight="int3 g16")]
    report = fb.quantize(model, fb.Recipe(rules, transforms=["awq"]), calibration=batches, evaluation=batches).report
    assert "v_proj -> o_proj" in report.remarks[0]
    plain = fb.quantize(before, fb.Recipe(rules), evaluation=batches).report
    assert report.after.kl_divergence < plain.after.kl_divergence


def test_the_report_names_links_and_settings():
    model, batches = salient()
    report = fb.quantize(model, recipe({"name": "awq", "weights": False}), calibration=batches).report
    assert report.remarks[0].startswith("awq: 1 link was rescaled, ratio 0.")
    assert report.remarks[0].endswith("for 1: 0 -> 1 1")
    assert report.layers[0].notes[0].startswith("awq ratio 0.")


def test_combinations_without_sense_are_errors_of_the_plan():
    model, batches = salient()
    with pytest.raises(PlanError, match="awq and smoothquant rescale the same links"):
        fb.quantize(model, recipe("awq", "smoothquant", given="int8"), calibration=batches)
    with pytest.raises(PlanError, match="awq scales columns for weights that are rounded to a scale, and none is"):
        fb.quantize(model, recipe("awq", weight="fp16"), calibration=batches)


def test_options_are_checked():
    assert parse_transform({"name": "awq", "steps": 10}) == Awq(steps=10)
    with pytest.raises(RecipeError, match="steps 0 is no number of steps"):
        Awq(steps=0)
    with pytest.raises(RecipeError, match="weights = 1 is not true or false"):
        Awq(weights=1)


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(32), nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        return x + self.down(torch.relu(self.up(self.norm(x))))


class Stack(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(Residual() for _ in range(2))

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


@pytest.mark.parametrize("transform", ["awq", "smoothquant"])
def test_a_block_is_rescaled_on_what_the_quantized_blocks_before_it_give(transform, monkeypatch):
    torch.manual_seed(0)
    model, batches = Stack().eval(), [torch.randn(40, 32) for _ in range(2)]
    float_model, seen, gather = copy.deepcopy(model), {}, LinkScope.statistics

    def spied(scope, wanted):
        found = gather(scope, dict.fromkeys(wanted, ("channel_magnitude", "row_sample")))
        seen.update({name: own["row_sample"].result() for name, own in found.items()})
        return found

    monkeypatch.setattr(LinkScope, "statistics", spied)
    given = "int8 token" if transform == "smoothquant" else None
    result = fb.quantize(model, recipe(transform, weight="int2 g32", given=given), calibration=batches)
    first, second = result.model.blocks[0], float_model.blocks
    with torch.no_grad():
        quantized, exact = (
            torch.cat([second[1].norm(block(batch)) for batch in batches]) for block in (first, second[0])
        )
    rows = seen["blocks.1.up"]
    assert rows.shape == quantized.shape
    nearest = [(rows[:, None] - own).abs().amax(2).amin(1).max() for own in (quantized, exact)]
    # The rescaled norm and weight of the first block give its rows but for the last places.
    assert nearest[0] < 1e-4
    assert nearest[1] > 0.1
