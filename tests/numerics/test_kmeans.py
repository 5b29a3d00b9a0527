"""Exact k-means on a line: as good as the best of all ways to cut sorted numbers."""

from itertools import combinations

import numpy as np
import pytest

from fewbit.numerics.kmeans import learned_levels


def least_error(values, weights, count):
    """Return the least error over every way to cut the sorted numbers into `count` runs."""
    order = np.argsort(values)
    values, weights = values[order], weights[order]
    best = np.inf
    for cuts in combinations(range(1, len(values)), count - 1):
        runs = zip((0, *cuts), (*cuts, len(values)), strict=True)
        error = 0.0
        for start, stop in runs:
            own, counted = values[start:stop], weights[start:stop]
            error += float((counted * (own - np.average(own, weights=counted)) ** 2).sum())
        best = min(best, error)
    return best


def error_of(levels, values, weights):
    return float((weights * ((values[:, None] - levels) ** 2).min(axis=1)).sum())


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("seed", range(6))
def test_levels_leave_the_least_error_of_all_cuts(count, seed):
    rng = np.random.default_rng(seed)
    values = rng.standard_t(3, (3, 14))
    weights = np.exp(2 * rng.standard_normal((3, 14)))
    levels = learned_levels(values, weights, count)
    assert (np.diff(levels, axis=1) >= 0).all()
    for row in range(3):
        # Levels are float32.
        assert (
            error_of(levels[row], values[row], weights[row]) <= least_error(values[row], weights[row], count) * 1.0001
        )


def test_more_levels_than_numbers_keep_every_number():
    values = np.asarray([[0.5, -1.0, 0.5, 2.0]])
    levels = learned_levels(values, np.ones_like(values), 8)
    assert set(levels[0].tolist()) == {-1.0, 0.5, 2.0}


def test_weights_move_levels_to_what_counts():
    values = np.asarray([[0.0, 1.0, 2.0, 10.0]])
    levels = learned_levels(values, np.asarray([[1.0, 1.0, 98.0, 100.0]]), 2)
    np.testing.assert_allclose(levels, [[1.97, 10.0]])
    heavy = learned_levels(values, np.asarray([[1000.0, 1.0, 1000.0, 1e-3]]), 2)
    assert heavy[0, 0] < 0.01


def test_it_beats_lloyd_from_quantiles_where_few_numbers_lie_far_out():
    rng = np.random.default_rng(0)
    values = np.concatenate([rng.normal(size=500), *(rng.normal(place, 0.1, size=5) for place in (20, 40, 60))])
    lloyd = np.quantile(values, (np.arange(8) + 0.5) / 8)
    for _ in range(100):
        code = np.abs(values[:, None] - lloyd).argmin(axis=1)
        lloyd = np.asarray([values[code == own].mean() if (code == own).any() else lloyd[own] for own in range(8)])
    ones = np.ones_like(values)
    exact = error_of(learned_levels(values[None], ones[None], 8)[0], values, ones)
    assert exact < 0.5 * error_of(lloyd, values, ones)
