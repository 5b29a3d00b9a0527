"""The compiled kernels and the batched ones do the same, up to the order in which float32 sums are taken."""

import numpy as np
import pytest
import torch

from fewbit.algorithms import columns_batched, columns_compiled
from fewbit.algorithms.column_scales import _FACTORS as FACTORS
from fewbit.formats.codebook import NF4

#: Sums of 40 float32 products in another order, as a share of the sum of magnitudes.
SUMS = 1e-5
#: Share of codes that sums in another order may push over a tie; each pushes those after it.
FLIPS = 0.01
INT4 = (-8.0, 7.0, 7.5)
LEVELS = {"integer": [], "levels": NF4.levels}


pytestmark = pytest.mark.usefixtures("one_thread")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def both(name, *arguments):
    """Return the arguments after the call of each kernel, compiled and batched."""
    made = []
    for kernels, as_given in ((columns_compiled, to_numpy), (columns_batched, lambda argument: argument)):
        own = [argument.clone() if isinstance(argument, torch.Tensor) else argument for argument in arguments]
        getattr(kernels, name)(*(as_given(argument) for argument in own))
        made.append(own)
    return made


def to_numpy(argument):
    if isinstance(argument, torch.Tensor):
        return argument.numpy()
    if isinstance(argument, tuple):
        return tuple(to_numpy(part) for part in argument)
    return np.float32(argument) if isinstance(argument, float) else argument


def left_over(weight, weights, scale, zero, low, high):
    """Return the weighted squared error of each row, in float64."""
    w, s, z = weight.double(), scale.double()[:, None], zero.double()[:, None]
    q = ((w / s).round() + z).clamp(low, high) - z
    return (weights.double() * (w - q * s).square()).sum(1)


WEIGHT = torch.cat([draw(60, 40) * 3, torch.zeros(1, 40), draw(1, 40).abs(), -draw(1, 40).abs(), draw(1, 40) * 1e-12])
WEIGHTS = draw(40, seed=1).abs() + 0.1


def test_symmetric_searches_find_the_same_scales():
    compiled, batched = both("search_symmetric", WEIGHT, WEIGHTS, INT4, torch.tensor(FACTORS), torch.ones(len(WEIGHT)))
    zero = torch.zeros(len(WEIGHT))
    errors = [left_over(WEIGHT, WEIGHTS, found[4], zero, -8, 7) for found in (compiled, batched)]
    # Two scales may be as good; what they leave is the same.
    torch.testing.assert_close(*errors, rtol=SUMS, atol=0)
    assert compiled[4][60] == batched[4][60] == 1.0  # of a row of zeros
    close = torch.isclose(compiled[4], batched[4], rtol=SUMS, atol=0)
    assert close.double().mean() >= 1 - FLIPS * 2


@pytest.mark.parametrize("limits", [INT4, (0.0, 15.0, 15.0), (-2.0, 1.0, 1.5), (-128.0, 127.0, 127.5)])
def test_asymmetric_searches_find_the_same_scales(limits):
    blank = torch.ones(len(WEIGHT)), torch.zeros(len(WEIGHT))
    compiled, batched = both("search_asymmetric", WEIGHT, WEIGHTS, limits, torch.tensor(FACTORS), *blank)
    errors = [left_over(WEIGHT, WEIGHTS, found[4], found[5], *limits[:2]) for found in (compiled, batched)]
    # At 8 bits rows differ in the last places of the scale, whose error is 2^-8 of a weight: the bound is wider.
    torch.testing.assert_close(*errors, rtol=SUMS * (100 if limits[1] > 100 else 1), atol=0)
    same = compiled[5] == batched[5]
    assert same.double().mean() >= 1 - FLIPS * 2
    for found in (compiled, batched):
        assert (found[4] > 0).all()
        assert ((found[5] >= limits[0]) & (found[5] <= limits[1]) & (found[5] == found[5].round())).all()


def test_a_search_is_never_worse_than_the_extremes():
    compiled, _ = both("search_symmetric", WEIGHT, WEIGHTS, INT4, torch.tensor(FACTORS), torch.ones(len(WEIGHT)))
    plain = WEIGHT.abs().amax(1) / 7.5
    plain[60] = 1.0
    zero = torch.zeros(len(WEIGHT))
    found, usual = (left_over(WEIGHT, WEIGHTS, scale, zero, -8, 7) for scale in (compiled[4], plain))
    # FACTORS step past 1 by 1e-2 at most, so a row may lack exactly the extremes; all rows together never do.
    assert found.sum() < usual.sum()


def system(width=40, rows=30):
    """Return weight, moment and its factor R, all well conditioned."""
    inputs = draw(400, width, seed=2) @ (torch.eye(width) + 0.3 * draw(width, width, seed=3))
    moment = inputs.T @ inputs / 400 + 0.1 * torch.eye(width)
    root = torch.linalg.cholesky(moment.double().flip(0, 1)).flip(0, 1)
    return draw(rows, width), moment, (root / root.diagonal()).float().contiguous()


def grid_of(levels):
    return (-8.0, 7.0, torch.empty(0, 0)) if not levels else (0.0, float(len(levels) - 1), torch.tensor([levels]))


@pytest.mark.parametrize("kind", LEVELS)
def test_columns_are_rounded_to_the_same_units(kind):
    weight, _, root = system()
    # Two groups of columns, which take turns.
    scale = torch.tensor([[0.4, 0.5] if kind == "integer" else [2.5, 3.0]]) * (1 + torch.arange(30.0)[:, None] / 100)
    zero = torch.full_like(scale, 2.0 if kind == "integer" else 0.0)
    scales = scale, zero, torch.arange(40) % 2
    targets, blank = weight + 0.1 * draw(30, 40, seed=6), torch.full_like(weight, 77.0)
    compiled, batched = both("round_columns", weight, targets, root, scales, grid_of(LEVELS[kind]), blank, 0)
    whole = (compiled[5] == batched[5]).all(1)
    assert (compiled[5] != batched[5]).double().mean() <= FLIPS
    # Rows without a flip agree in what was left too; the sum of 40 updates of about 1 each was rounded at each.
    torch.testing.assert_close(compiled[1][whole], batched[1][whole], rtol=0, atol=40 * 2.0**-22)
    for found in (compiled, batched):
        levels = torch.tensor(LEVELS[kind]) if LEVELS[kind] else torch.arange(-10.0, 6.0)
        assert torch.isin(found[5], levels).all()
        errors = weight - found[5] * scale[:, scales[2]]
        # One product and one difference: a place of numbers below 8 each.
        torch.testing.assert_close(found[0], errors, rtol=0, atol=2.0**-20)
        torch.testing.assert_close(found[1], targets - weight + errors @ root, rtol=0, atol=40 * 2.0**-22)


@pytest.mark.parametrize("kernel", [0, 1])
def test_columns_from_the_middle_are_rounded_as_if_they_were_alone(kernel):
    weight, _, root = system(rows=70)
    scales = torch.full((70, 1), 0.4), torch.zeros(70, 1), torch.zeros(12, dtype=torch.int64)
    targets, units, part = weight + 0.1 * draw(70, 40, seed=6), torch.full_like(weight, 77.0), slice(9, 21)
    # R as a factorization leaves it: columns one after the other in memory.
    whole = both("round_columns", weight, targets, root.T.contiguous().T, scales, grid_of([]), units, 9)[kernel]
    own = (weight[:, part].contiguous(), targets[:, part].contiguous(), root[part, part].contiguous())
    alone = both("round_columns", *own, scales, grid_of([]), units[:, part].contiguous(), 0)[kernel]
    for place, before in ((0, weight), (1, targets), (5, units)):
        assert torch.equal(whole[place][:, part], alone[place])
        beside = torch.ones(40, dtype=torch.bool).index_fill(0, torch.arange(40)[part], False)
        assert torch.equal(whole[place][:, beside], before[:, beside])


def test_a_descent_ends_where_no_column_has_a_better_unit():
    weight, moment, _ = system(width=100)
    scales = torch.full((30, 1), 0.4), torch.zeros(30, 1), torch.zeros(100, dtype=torch.int64)
    units = (weight / 0.4).round().clamp(-8, 7)
    gradient = (weight - units * 0.4) @ moment
    compiled, _ = both("descend", units, gradient, moment, scales, grid_of([]), 1000)
    # In float64 from the units alone; a column that stays may be half a unit away, and what the gradient sums up.
    left = (weight - compiled[0] * 0.4).double() @ moment.double()
    ideal = compiled[0].double() + left / (moment.diagonal().double() * 0.4)
    assert ((ideal - compiled[0]).abs()[(ideal > -8) & (ideal < 7)] <= 0.5 + 1e-4).all()
    assert (compiled[0] != units).any()


@pytest.mark.parametrize("panel", [128, 16])
@pytest.mark.parametrize("kind", LEVELS)
def test_descents_reach_the_same_units(kind, panel, monkeypatch):
    monkeypatch.setattr(columns_batched, "_PANEL", panel)
    weight, moment, _ = system()
    scale = torch.full_like(weight, 0.4 if kind == "integer" else 2.5)
    zero, grid = torch.zeros_like(weight), grid_of(LEVELS[kind])
    units = columns_batched._unit(weight / scale, zero, grid)
    gradient = ((weight - units * scale) @ moment).contiguous()
    scales = scale[:, :2], zero[:, :2], torch.arange(40) % 2
    compiled, batched = both("descend", units, gradient, moment, scales, grid, 3)
    assert (units != compiled[0]).any()
    assert (compiled[0] != batched[0]).double().mean() <= FLIPS
    errors = []
    for found in ([units], compiled, batched):
        off = (weight - found[0] * scale).double()
        errors.append(float((off @ moment.double() * off).sum()))
    before, after_compiled, after_batched = errors
    assert after_compiled < before
    assert after_compiled == pytest.approx(after_batched, rel=FLIPS)
    # The gradient is that of the units at the end; it was moved by about 40 steps, each rounded.
    expected = (weight - compiled[0] * scale) @ moment
    torch.testing.assert_close(compiled[1], expected, rtol=0, atol=1e-4)


def test_matrices_side_by_side_descend_as_they_do_alone(monkeypatch):
    monkeypatch.setattr(columns_batched, "_PANEL", 16)
    weights, moment = torch.stack([draw(30, 40, seed=seed) for seed in (4, 5)]), system()[1]
    moments = torch.stack([moment, moment.flip(0, 1)])
    scales = torch.full((30, 1), 0.4), torch.zeros(30, 1), torch.zeros(40, dtype=torch.int64)
    units = (weights / 0.4).round().clamp(-8, 7)
    gradient = (weights - units * 0.4) @ moments
    alone = units.clone(), gradient.clone()
    for group in range(2):
        columns_batched.descend(alone[0][group], alone[1][group], moments[group], scales, grid_of([]), 2)
    both = tuple(part.expand(2, 30, 1) for part in scales[:2])
    columns_batched.descend(units, gradient, moments[:, None], (*both, scales[2]), grid_of([]), 2)
    assert (units != (weights / 0.4).round().clamp(-8, 7)).any()
    # One product of two matrices or two of one: the sums of 16 moves may be rounded otherwise.
    assert (units != alone[0]).double().mean() <= FLIPS
    # As above: the gradient was moved by about 40 steps, each rounded.
    torch.testing.assert_close(gradient, (weights - units * 0.4) @ moments, rtol=0, atol=1e-4)


def test_trials_that_are_compared_in_parts_come_to_the_same_scale(monkeypatch):
    arguments = WEIGHT, WEIGHTS, INT4, torch.tensor(FACTORS)
    found = []
    for together in (1 << 27, 3 * WEIGHT.numel()):
        monkeypatch.setattr(columns_batched, "_AT_ONCE", together)
        found.append(torch.ones(len(WEIGHT)))
        columns_batched.search_symmetric(*arguments, found[-1])
    assert torch.equal(*found)


@pytest.mark.parametrize("kernels", [columns_compiled, columns_batched])
def test_ties_go_to_the_even_code(kernels):
    weight, units = torch.tensor([[0.5, 1.5, 2.5, -0.5, -1.5, 99.0, -99.0]]), torch.empty(1, 7)
    scales = torch.ones(1, 1), torch.zeros(1, 1), torch.zeros(7, dtype=torch.int64)
    arguments = weight, weight.clone(), torch.eye(7), scales, grid_of([]), units, 0
    kernels.round_columns(*(to_numpy(part) if kernels is columns_compiled else part for part in arguments))
    assert units.tolist() == [[0.0, 2.0, 2.0, 0.0, -2.0, 7.0, -8.0]]
