"""Range methods: what they cover, on every framework; every bound holds 0."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewbit.catalogue import lookup
from fewbit.errors import SchemeError
from fewbit.formats.integer import Int
from fewbit.numerics.groups import box_axes, split
from fewbit.ranges import RANGES
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.fixed import Fixed
from fewbit.ranges.grid import Grid
from fewbit.ranges.least_squares import LeastSquares
from fewbit.ranges.minmax import MinMax
from fewbit.ranges.percentile import Percentile
from fewbit.ranges.squared_error import SquaredError

# Squares of these are finite in float32: some methods search the least squared error.
VALUES = st.floats(-(2.0**40), 2.0**40, width=32)
MATRICES = hnp.arrays(np.float32, hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=VALUES)
WEIGHT = np.array([[1, -3, 2, 4], [5, 6, 7, 8], [-1, -2, -3, -4], [0, 0, 0, 0]], np.float32)
GRIDS = [Grid(format=Int(4)), Grid(format=Int(4), symmetric=False)]


def made(name: str):
    return lookup(RANGES, name, what="range method")()


def heavy_tailed() -> np.ndarray:
    """Return 6 boxes of 48 numbers with outliers."""
    return np.random.default_rng(0).standard_t(3, size=(6, 48)).astype(np.float32)


@pytest.mark.parametrize("name", RANGES)
def test_the_word_in_the_catalogue_is_the_name(name):
    assert made(name).name == name


# The two that search a histogram or alternate are slow: fewer examples would be drawn of all.
@pytest.mark.parametrize("grid", GRIDS, ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", ["absmax", "minmax", "percentile", "mse"])
@given(values=MATRICES)
def test_bounds_hold_zero_and_have_one_number_a_row(name, grid, values):
    low, high = made(name)(values, (1,), grid)
    assert low.shape == high.shape == (len(values), 1)
    assert (low <= 0).all()
    assert (high >= 0).all()


@pytest.mark.parametrize("grid", GRIDS, ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", ["entropy", "lsq"])
def test_bounds_of_slow_searches_hold_zero_and_have_one_number_a_row(name, grid):
    values = np.concatenate([heavy_tailed(), np.abs(heavy_tailed()), np.zeros((1, 48), np.float32)])
    low, high = made(name)(values, (1,), grid)
    assert low.shape == high.shape == (13, 1)
    assert (low <= 0).all()
    assert (high >= 0).all()


@given(values=MATRICES)
def test_absmax_is_the_largest_magnitude_both_ways(values):
    low, high = AbsMax()(values, (1,))
    assert high[:, 0].tolist() == [max(abs(value) for value in row) for row in values.tolist()]
    assert (low == -high).all()


@given(values=MATRICES)
def test_minmax_is_the_extremes_and_zero(values):
    low, high = MinMax()(values, (1,))
    assert low[:, 0].tolist() == [min(0.0, *row) for row in values.tolist()]
    assert high[:, 0].tolist() == [max(0.0, *row) for row in values.tolist()]


@given(values=MATRICES)
def test_all_percent_are_the_extremes(values):
    for grid, method in zip(GRIDS, [AbsMax(), MinMax()], strict=True):
        for bound, extreme in zip(Percentile(100.0)(values, (1,), grid), method(values, (1,)), strict=True):
            np.testing.assert_array_equal(bound, extreme)


def test_a_percentile_is_numpys_linear_quantile():
    # Grids hold 0, and so must the bounds; with values on both sides of 0 that changes nothing.
    values = heavy_tailed()
    low, high = Percentile(90.0)(values, (1,), GRIDS[1])
    # 1e-6: NumPy interpolates in float64, fewbit in float32, where one rounding is 6e-8 relative.
    np.testing.assert_allclose(low[:, 0], np.quantile(values.astype(np.float64), 0.1, axis=1), rtol=1e-6)
    np.testing.assert_allclose(high[:, 0], np.quantile(values.astype(np.float64), 0.9, axis=1), rtol=1e-6)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("grid", GRIDS, ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("method", [SquaredError(), LeastSquares()], ids=lambda method: method.name)
def test_searches_beat_the_extremes_and_never_lose_to_them(method, grid, weighted):
    values = heavy_tailed()
    weights = np.random.default_rng(1).uniform(0.1, 10, values.shape).astype(np.float32) if weighted else None
    extremes = (AbsMax() if grid.symmetric else MinMax())(values, (1,))
    found = grid.error(values, *method(values, (1,), grid, weights), (1,), weights)
    plain = grid.error(values, *extremes, (1,), weights)
    assert (found <= plain).all()
    assert (found < plain).any()


def test_importance_lowers_the_error_it_weighs():
    values, grid = heavy_tailed(), GRIDS[0]
    importance = np.where(np.abs(values) < 1, np.float32(100), np.float32(0.01))
    with_importance = SquaredError()(values, (1,), grid, importance)
    without = SquaredError()(values, (1,), grid)
    error = grid.error(values, *with_importance, (1,), importance)
    assert (error <= grid.error(values, *without, (1,), importance)).all()
    assert (error < grid.error(values, *without, (1,), importance)).any()


@pytest.mark.parametrize(
    ("method", "low", "high"),
    [
        (AbsMax(), [[-3, -4], [-6, -8], [-2, -4], [0, 0]], [[3, 4], [6, 8], [2, 4], [0, 0]]),
        (MinMax(), [[-3, 0], [0, 0], [-2, -4], [0, 0]], [[1, 4], [6, 8], [0, 0], [0, 0]]),
        (Fixed(2.0, -0.5), [[-0.5, -0.5]] * 4, [[2, 2]] * 4),
    ],
    ids=lambda value: getattr(value, "name", None),
)
def test_every_framework_finds_the_bounds_of_groups(method, low, high, xp):
    found = method(split(xp.from_numpy(WEIGHT), (1, 2)), box_axes(2))
    assert [xp.to_numpy(bound)[:, 0, :, 0].tolist() for bound in found] == [low, high]


@pytest.mark.parametrize("grid", GRIDS, ids=["symmetric", "asymmetric"])
@pytest.mark.parametrize("name", RANGES)
def test_every_framework_finds_the_bounds_of_numpy(name, grid, xp):
    values = heavy_tailed()
    expected = made(name)(values, (1,), grid)
    found = made(name)(xp.from_numpy(values), (1,), grid)
    for bound, reference in zip(found, expected, strict=True):
        np.testing.assert_array_equal(xp.to_numpy(bound), reference, strict=True)


@pytest.mark.parametrize("method", [AbsMax(), MinMax()], ids=lambda method: method.name)
def test_the_filling_of_an_uneven_group_changes_no_bound(method):
    filled = method(split(WEIGHT, (1, 3)), box_axes(2))
    for bound, filled_bound in zip(method(WEIGHT[:, 3:], (1,)), filled, strict=True):
        assert filled_bound[:, 0, 1, 0].tolist() == bound[:, 0].tolist()


def test_bounds_that_leave_out_zero_are_refused():
    with pytest.raises(SchemeError, match=r"^fixed bounds 0\.5 and 2\.0 do not hold 0 and more$"):
        Fixed(2.0, 0.5)
    with pytest.raises(SchemeError, match=r"^percentile 101\.0 is outside \(50, 100\]$"):
        Percentile(101.0)
