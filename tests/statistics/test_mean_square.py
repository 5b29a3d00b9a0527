"""Mean squares of rows: the diagonal of the second moment, whatever the cut."""

import numpy as np
import pytest

from fewbit.errors import NonFiniteError
from fewbit.statistics.mean_square import MeanSquare
from fewbit.statistics.second_moment import SecondMoment

ROWS = np.random.default_rng(0).normal(size=(700, 6)).astype(np.float32) + 1


def test_they_are_those_of_float64_in_every_framework(xp):
    first, second = (MeanSquare.init(6, xp.from_numpy(ROWS)) for _ in range(2))
    first.update(xp.from_numpy(ROWS[:300].reshape(3, 100, 6)))
    second.update(xp.from_numpy(ROWS[300:]))
    first.merge(second)
    assert first.count == 700
    # A square is rounded to float32, half a unit in 2^-24 each.
    np.testing.assert_allclose(xp.to_numpy(first.result()), (ROWS.astype(np.float64) ** 2).mean(0), rtol=6e-8)


def test_they_are_the_diagonal_of_the_second_moment():
    squares, moment = MeanSquare.init(6, ROWS), SecondMoment.init(6, ROWS)
    for own in (squares, moment):
        own.update(ROWS)
    np.testing.assert_allclose(squares.result(), moment.result().diagonal(), rtol=1e-5)  # sums of float32


def test_groups_have_squares_of_their_own():
    squares = MeanSquare.of_groups(3, 2, ROWS)
    squares.update(ROWS)
    whole = MeanSquare.init(6, ROWS)
    whole.update(ROWS)
    assert np.array_equal(squares.result(), whole.result().reshape(2, 3))


def test_what_is_not_finite_is_refused():
    statistic = MeanSquare.init(6, ROWS)
    statistic.update(np.where(ROWS[0, 0] == ROWS, np.float32(np.nan), ROWS))
    with pytest.raises(NonFiniteError, match="NaN or infinity"):
        statistic.result()
