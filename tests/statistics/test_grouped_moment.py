"""Second moments of groups of channels: those of each group on its own."""

import numpy as np
import pytest

from fewbit.errors import NonFiniteError
from fewbit.statistics.second_moment import RelativeSecondMoment, SecondMoment

ROWS = np.random.default_rng(0).normal(size=(9000, 3 * 5)).astype(np.float32)


def gathered(kind, parts, like=ROWS):
    statistic = kind.of_groups(5, 3, like)
    for part in parts:
        statistic.update(part)
    return statistic


def test_each_group_has_the_second_moment_of_its_own_columns(xp):
    statistic = gathered(SecondMoment, [xp.from_numpy(ROWS[:8000]), xp.from_numpy(ROWS[8000:])], xp.from_numpy(ROWS))
    found = xp.to_numpy(statistic.result())
    assert (statistic.groups, statistic.width, statistic.count) == (3, 5, 9000)
    np.testing.assert_array_equal(found, found.transpose(0, 2, 1))
    for group in range(3):
        own = ROWS[:, 5 * group : 5 * group + 5].astype(np.float64)
        # Float32 sums of 9000 products of numbers about 1.
        np.testing.assert_allclose(found[group], own.T @ own / 9000, rtol=0, atol=2e-5)


def test_rows_count_alike_where_moments_are_relative():
    sizes = np.exp(np.random.default_rng(1).normal(size=(9000, 1)) * 3).astype(np.float32)
    found, expected = (gathered(RelativeSecondMoment, [rows]).result() for rows in (ROWS * sizes, ROWS))
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert not np.allclose(gathered(SecondMoment, [ROWS * sizes]).result(), expected, rtol=0, atol=1)


def test_merged_ones_have_seen_the_rows_of_both():
    first, second = gathered(SecondMoment, [ROWS[:100]]), gathered(SecondMoment, [ROWS[100:]])
    first.merge(second)
    assert first.count == 9000
    np.testing.assert_allclose(first.result(), gathered(SecondMoment, [ROWS]).result(), rtol=0, atol=2e-5)


def test_nothing_seen_is_zeros():
    assert not gathered(SecondMoment, []).result().any()


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid value")
@pytest.mark.parametrize("bad", [np.nan, np.inf, 3e38])
def test_what_is_not_finite_is_refused(bad):
    rows = ROWS[:4].copy()
    rows[1, 7] = bad
    with pytest.raises(NonFiniteError, match="its inputs hold NaN or infinity"):
        gathered(SecondMoment, [rows]).result()
