"""Rounding to whole numbers and the noise behind stochastic rounding."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from fewbit.errors import SchemeError
from fewbit.numerics.noise import uniform
from fewbit.numerics.rounding import to_whole

VALUES = arrays(np.float32, 8, elements=st.floats(-1000, 1000, width=32))
NOISE = arrays(np.float32, 8, elements=st.floats(0, 1 - 2.0**-24, width=32))


def test_without_noise_ties_go_to_even(xp):
    values = np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32)
    assert xp.to_numpy(to_whole(xp.from_numpy(values))).tolist() == [-2, -2, 0, 0, 2, 2]


@given(VALUES, NOISE)
def test_noise_picks_one_of_both_neighbours_and_leaves_whole_numbers_alone(values, noise):
    rounded = to_whole(values, noise)
    assert ((rounded == np.floor(values)) | (rounded == np.ceil(values))).all()
    np.testing.assert_array_equal(to_whole(np.round(values), noise), np.round(values))


def test_more_noise_never_rounds_further_up():
    values = np.full(5, 0.5, np.float32)
    noise = np.array([0.0, 0.25, 0.5, 0.75, 1 - 2.0**-24], np.float32)
    assert to_whole(values, noise).tolist() == [1, 1, 0, 0, 0]


def test_noise_is_the_same_to_the_bit_in_every_framework(xp):
    expected = uniform((3, 5), 11, np.zeros(1))
    np.testing.assert_array_equal(xp.to_numpy(uniform((3, 5), 11, xp.from_numpy(np.zeros(1)))), expected, strict=True)


def test_noise_depends_on_the_position_and_not_on_the_cut():
    whole = uniform((1000,), 3, np.zeros(1))
    parts = [uniform((250,), 3, np.zeros(1), start) for start in range(0, 1000, 250)]
    np.testing.assert_array_equal(np.concatenate(parts), whole, strict=True)


def test_noise_is_uniform_and_independent_of_its_neighbour_and_of_other_seeds():
    first, second = (uniform((200_000,), seed, np.zeros(1)).astype(np.float64) for seed in (0, 1))
    assert (first >= 0).all()
    assert (first < 1).all()
    shares = np.histogram(first, 16, (0, 1))[0] / len(first)
    # A share of 1/16 over 200 000 draws has a standard deviation of 5.4e-4; a correlation one of 2.2e-3.
    assert np.abs(shares - 1 / 16).max() < 5 * 5.4e-4
    for other in (np.roll(first, 1), np.roll(first, 64), np.roll(first, 4096), second):
        assert abs(np.corrcoef(first, other)[0, 1]) < 5 * 2.2e-3


def test_more_positions_than_the_noise_has_are_refused():
    with pytest.raises(SchemeError, match=r"noise has 2\^31 positions; 2147483649 are asked for"):
        uniform((1,), 0, np.zeros(1), 2**31)
