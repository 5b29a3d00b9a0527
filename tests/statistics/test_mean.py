"""Means of rows: those of float64, whatever the cut."""

import numpy as np
import pytest

from fewbit.errors import NonFiniteError
from fewbit.statistics.mean import Mean

ROWS = np.random.default_rng(0).normal(size=(700, 6)).astype(np.float32) + 100


def test_the_mean_is_that_of_float64_in_every_framework(xp):
    first, second = (Mean.init(6, xp.from_numpy(ROWS)) for _ in range(2))
    first.update(xp.from_numpy(ROWS[:300].reshape(3, 100, 6)))
    second.update(xp.from_numpy(ROWS[300:]))
    first.merge(second)
    assert (first.count, first.width) == (700, 6)
    # Sums of 700 float32 numbers are exact in float64 but for its last places.
    np.testing.assert_allclose(xp.to_numpy(first.result()), ROWS.mean(0, dtype=np.float64), rtol=1e-12)


def test_groups_lie_side_by_side():
    assert Mean.of_groups(3, 2, ROWS).width == 6


def test_what_is_not_finite_is_refused():
    statistic = Mean.init(6, ROWS)
    statistic.update(np.where(ROWS[0, 0] == ROWS, np.float32(np.inf), ROWS))
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        statistic.result()
