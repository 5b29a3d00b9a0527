"""The affine formula at a given scale and zero point: exact zero, idempotent, monotone, half a step."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewbit.numerics.affine import asymmetric_scale, encode, symmetric_scale, zero_point

VALUES = hnp.arrays(
    np.float32, st.integers(1, 40), elements=st.floats(-(2.0**60), 2.0**60, width=32, allow_subnormal=False)
)
BITS = st.integers(1, 8)


def fitted(values: np.ndarray, bits: int) -> tuple[np.ndarray, np.ndarray, int, int]:
    """Return scale, zero point, qmin and qmax of the extremes of `values`, as arrays of one number."""
    qmin, qmax = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low, high = np.minimum(values.min(keepdims=True), 0), np.maximum(values.max(keepdims=True), 0)
    scale = asymmetric_scale(low, high, qmax - qmin)
    return scale, zero_point(low, scale, qmin, qmax), qmin, qmax


@given(VALUES, BITS)
def test_zero_encodes_as_the_zero_point(values, bits):
    scale, zero, qmin, qmax = fitted(values, bits)
    assert qmin <= zero[0] <= qmax
    assert encode(np.zeros(1, np.float32), scale, zero, (qmin, qmax)) == zero


@given(VALUES, BITS)
def test_encoding_what_was_decoded_gives_the_same_codes(values, bits):
    scale, zero, qmin, qmax = fitted(values, bits)
    every = np.arange(qmin, qmax + 1, dtype=np.float32)
    decoded = (every - zero) * scale
    np.testing.assert_array_equal(encode(decoded, scale, zero, (qmin, qmax)), every, strict=True)


@given(VALUES, BITS)
def test_larger_values_never_get_smaller_codes(values, bits):
    scale, zero, *limits = fitted(values, bits)
    codes = encode(np.sort(values), scale, zero, tuple(limits))
    assert (np.diff(codes) >= 0).all()


@given(VALUES, BITS)
def test_fitted_values_decode_within_one_step(values, bits):
    scale, zero, qmin, qmax = fitted(values, bits)
    steps = encode(values, scale, zero, (qmin, qmax)).astype(np.float64) - zero
    error = np.abs(steps - values.astype(np.float64) / scale)
    # Half a step from rounding the value and half from rounding the zero point, which may push the extremes out of
    # range. The rest: reciprocal, product and scale are each off by 2^-24 relative, twice, in up to 255 steps.
    slack = 4 * 256 * 2.0**-24
    assert (error[values != 0] <= 1 + slack).all() or scale == 1
    inside = (qmin < zero + steps) & (zero + steps < qmax)
    assert (error[inside] <= 0.5 + slack).all()


def test_a_scale_is_one_where_it_would_be_zero_or_subnormal(xp):
    amax = np.array([0.0, 2.0**-126, 7.5 * 2.0**-126, 15 * 2.0**-126, 7.5], np.float32)
    scale = xp.to_numpy(symmetric_scale(xp.from_numpy(amax), 7.5))
    assert scale.tolist() == [1.0, 1.0, 2.0**-126, 2.0**-125, 1.0]
    assert xp.to_numpy(asymmetric_scale(xp.from_numpy(-amax), xp.from_numpy(amax), 15)).tolist() == scale.tolist()


def test_a_scale_is_a_product_with_a_rounded_reciprocal_not_a_quotient(xp):
    # XLA rewrites a division by a constant to this product; where the two differ, the product is meant.
    amax = np.random.default_rng(0).uniform(1, 2, 1000).astype(np.float32)
    product, quotient = amax * np.float32(1 / 127.5), amax / np.float32(127.5)
    assert (product != quotient).mean() > 0.1
    np.testing.assert_array_equal(xp.to_numpy(symmetric_scale(xp.from_numpy(amax), 127.5)), product, strict=True)


def test_values_are_multiplied_by_the_reciprocal_not_divided(xp):
    # A quotient just beside a tie, where the two roads lead to different codes.
    rng = np.random.default_rng(0)
    scale = rng.uniform(0.5, 2, 20000).astype(np.float32)
    values = (rng.integers(-100, 100, 20000) + 0.5).astype(np.float32) * scale
    expected = np.round(values * (np.float32(1) / scale))
    assert (expected != np.round(values / scale)).any()
    zero = np.zeros(20000, np.float32)
    codes = encode(xp.from_numpy(values), xp.from_numpy(scale), xp.from_numpy(zero), (-128, 127))
    np.testing.assert_array_equal(xp.to_numpy(codes), expected, strict=True)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.float32])
def test_ties_round_to_even_before_the_zero_point_is_added(dtype, xp):
    values = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5], np.float32)
    one, zero = xp.from_numpy(np.ones(1, np.float32)), xp.from_numpy(np.ones(1, dtype))
    codes = xp.to_numpy(encode(xp.from_numpy(values), one, zero, (-8, 7)))
    assert codes.tolist() == [1, 3, 3, 1, -1, -1]  # 0 2 2 0 -2 -2, moved by the zero point; not round(x + 1)
