"""Sums that are the same to the bit in every framework."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewbit.numerics.summation import tree_sum

#: Whole numbers whose every sum float32 holds: no order of adding is better than another.
WHOLE = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=4, max_side=9), elements=st.integers(-1000, 1000))


@given(WHOLE, st.data())
def test_sums_of_whole_numbers_are_exact_over_any_axes(values, data):
    axes = tuple(data.draw(st.sets(st.integers(0, values.ndim - 1), min_size=1)))
    np.testing.assert_array_equal(tree_sum(values, axes), values.sum(axis=axes, keepdims=True), strict=True)


@pytest.mark.parametrize("length", [1, 2, 3, 1000, 4097])
def test_every_framework_adds_in_the_same_order(length, xp):
    # Magnitudes from 1e-4 to 1e4: another order gives another last bit, see below.
    rng = np.random.default_rng(0)
    values = (rng.normal(size=(5, length)) * 10.0 ** rng.uniform(-4, 4, size=(5, length))).astype(np.float32)
    expected = tree_sum(values, (1,))
    np.testing.assert_array_equal(xp.to_numpy(tree_sum(xp.from_numpy(values), (1,))), expected, strict=True)
    # A tree of 13 levels rounds each partial sum once, by 2^-24 of at most the sum of magnitudes.
    bound = 13 * 2.0**-24 * np.abs(values.astype(np.float64)).sum(axis=1, keepdims=True)
    assert (np.abs(expected - values.astype(np.float64).sum(axis=1, keepdims=True)) <= bound).all()


def test_the_order_of_adding_matters_to_the_last_bit():
    values = np.random.default_rng(0).normal(size=(50, 1000)).astype(np.float32)
    assert (tree_sum(values, (1,)) != tree_sum(np.sort(values, axis=1), (1,))).any()
