"""Casts to 16 bits equal those of NumPy, ml_dtypes, torch and JAX, and never come out infinite."""

import jax
import ml_dtypes
import numpy as np
import pytest
import torch

from fewbit.formats.cast import BF16, FP16

CASTS = [FP16, BF16]
TYPES = {"fp16": (np.float16, torch.float16), "bf16": (ml_dtypes.bfloat16, torch.bfloat16)}
LARGEST_FLOAT32 = float(np.finfo(np.float32).max)


@pytest.fixture(params=CASTS, ids=lambda cast: cast.name)
def cast(request):
    return request.param


def telling_values(cast):
    """Every level, the middle to the next one and the float32 numbers around both; none that saturates."""
    levels = np.array(cast.levels)
    points = np.concatenate([levels, (levels[1:] + levels[:-1]) / 2]).astype(np.float32)
    around = [np.nextafter(points, np.float32(-np.inf)), points, np.nextafter(points, np.float32(np.inf))]
    values = np.concatenate([*around, np.random.default_rng(0).normal(size=5000).astype(np.float32)])
    # What float32 holds as a subnormal counts as 0, of which codes know one; tested below.
    return values[(np.abs(values) >= 2.0**-126) & (np.abs(values) <= cast.largest)]


def test_codes_are_the_bits_of_the_casts_of_the_frameworks(cast, xp):
    values = telling_values(cast)
    assert len(values) > 370_000
    numpy_type, torch_type = TYPES[cast.name]
    codes = xp.to_numpy(cast.encode(xp.from_numpy(values)))
    assert codes.dtype == np.uint16
    np.testing.assert_array_equal(codes, values.astype(numpy_type).view(np.uint16))
    np.testing.assert_array_equal(codes, torch.from_numpy(values).to(torch_type).view(torch.uint16).numpy())
    np.testing.assert_array_equal(codes, np.asarray(jax.numpy.asarray(values).astype(numpy_type)).view(np.uint16))


def test_truncation_would_fail_that(cast):
    values = telling_values(cast)
    toward_zero = np.where(np.abs(cast.round(values)) > np.abs(values), np.nextafter(values, np.float32(0)), values)
    assert (cast.encode(toward_zero.astype(np.float32)) != cast.encode(values)).any()


def test_rounded_numbers_are_those_of_the_codes(cast, xp):
    values = telling_values(cast)
    rounded = xp.to_numpy(cast.round(xp.from_numpy(values)))
    np.testing.assert_array_equal(rounded, values.astype(TYPES[cast.name][0]).astype(np.float32), strict=True)
    np.testing.assert_array_equal(xp.to_numpy(cast.decode(cast.encode(xp.from_numpy(values)))), rounded, strict=True)


def test_every_code_of_a_number_decodes_to_it_and_is_its_own(cast, xp):
    codes = np.arange(2**16, dtype=np.uint16)
    expected = codes.view(TYPES[cast.name][0]).astype(np.float32)
    # bfloat16 has subnormals where float32 has them, and those count as 0.
    number = np.isfinite(expected) & ((np.abs(expected) >= 2.0**-126) | (codes == 0))
    codes, expected = codes[number], expected[number]
    decoded = cast.decode(xp.from_numpy(codes))
    np.testing.assert_array_equal(xp.to_numpy(decoded), expected, strict=True)
    np.testing.assert_array_equal(xp.to_numpy(cast.encode(decoded)), codes)
    np.testing.assert_array_equal(xp.to_numpy(cast.from_unsigned(cast.to_unsigned(xp.from_numpy(codes)))), codes)


@pytest.mark.parametrize("beyond", [1.0, 1.1, float("inf")])
def test_nothing_becomes_infinite(cast, xp, beyond):
    value = min(beyond * cast.largest, LARGEST_FLOAT32) if beyond < float("inf") else beyond
    values = xp.from_numpy(np.array([value, -value], np.float32))
    for found in (cast.round(values), cast.decode(cast.encode(values))):
        assert xp.to_numpy(found).tolist() == [cast.largest, -cast.largest]


def test_the_casts_of_the_frameworks_do_overflow():
    # The negative control of the test before.
    assert torch.tensor([65520.0]).to(torch.float16).isinf().all()
    assert torch.tensor([LARGEST_FLOAT32]).to(torch.bfloat16).isinf().all()


def test_subnormals_of_fp16_are_kept_and_those_of_float32_are_0(xp):
    values = np.array([2.0**-24, 3 * 2.0**-25, -(2.0**-25), 2.0**-14 - 2.0**-24], np.float32)
    expected = [2.0**-24, 2.0**-23, 0.0, 2.0**-14 - 2.0**-24]
    assert xp.to_numpy(FP16.round(xp.from_numpy(values))).tolist() == expected
    tiny = np.array([2.0**-127, -(2.0**-130), 0.0, -0.0], np.float32)
    for cast in CASTS:
        assert xp.to_numpy(cast.encode(xp.from_numpy(tiny))).tolist() == [0, 0, 0, 0]


def test_nan_stays_nan(cast):
    assert torch.isnan(cast.round(torch.tensor([float("nan"), 1.0]))).tolist() == [True, False]
    assert np.isnan(cast.round(np.array([np.nan, 1.0], np.float32))).tolist() == [True, False]


def test_gradients_pass_straight_through_up_to_half_a_step_beyond_the_largest(cast):
    values = [1.1, -3.0, cast.largest, -LARGEST_FLOAT32 if cast is FP16 else 0.5]
    tensor = torch.tensor(values, requires_grad=True)
    cast.round(tensor).sum().backward()
    assert tensor.grad.tolist() == [1, 1, 1, 0 if cast is FP16 else 1]
    gradient = jax.grad(lambda array: cast.round(array).sum())(jax.numpy.asarray(values, dtype="float32"))
    assert gradient.tolist() == tensor.grad.tolist()


def test_stochastic_casts_are_right_on_average(cast):
    low, high = np.float32(1.0), np.float32(1.0 + 2.0**-cast.form.mantissa)
    values = np.full(1000, low + 0.25 * (high - low), np.float32)
    noise = ((np.arange(1000) + 0.5) / 1000).astype(np.float32)  # each share of [0, 1) once: exact to a part
    for array, more in ((values, noise), (torch.from_numpy(values), torch.from_numpy(noise))):
        rounded = np.asarray(cast.round(array, more))
        assert set(rounded.tolist()) == {float(low), float(high)}
        assert abs((rounded == high).mean() - 0.25) <= 0.001
