"""Biases in int32: counted in scale of the input x scale of the weight, which grows where 32 bits are too few."""

from dataclasses import replace
from fractions import Fraction

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fewbit.errors import NonFiniteError
from fewbit.formats.scale_type import scale_fits
from fewbit.integer_bias import make_room, quantize_bias
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

SCHEMES = [
    "int8 channel",
    "int8 tensor",
    "int8 channel asym",
    "int4 channel",
    "int8 channel narrow",
    "int3 tensor asym",
]
LARGEST = 2**30
#: Codes are the integers nearest to a float64 quotient below 2^31, which is right to 2^-22.
HALF = Fraction(1, 2) + Fraction(1, 2**22)


def weights(seed=0, out=12, width=24):
    return np.random.default_rng(seed).normal(size=(out, width)).astype(np.float32)


def quantized(weight, scheme, scale_type="float16"):
    return quantize(weight, replace(parse_scheme(scheme), scale_type=scale_type))


def units(input_scale, weight, out):
    """The unit of each number of a bias, a float32 product."""
    scale = np.asarray(weight.scale_values(), np.float32).reshape(-1) * np.float32(input_scale)
    return [Fraction(float(unit)) for unit in np.broadcast_to(scale, (out,))]


def by_fractions(bias, unit):
    """The nearest multiple of each unit, ties to the even one; exact arithmetic."""
    return [round(Fraction(float(number)) / own) for number, own in zip(bias, unit, strict=True)]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_codes_are_those_of_exact_arithmetic_in_every_framework(scheme, xp):
    weight = weights()
    bias = (np.random.default_rng(1).normal(size=12) * 10.0 ** np.arange(-6, 6)).astype(np.float32)
    scale = np.float32(0.0137)
    plain = quantized(weight, scheme)
    found = quantize_bias(xp.from_numpy(bias), xp.from_numpy(np.asarray(scale)), plain.map(xp.from_numpy))
    codes = xp.to_numpy(found.codes)
    assert codes.dtype == np.int32
    assert codes.tolist() == by_fractions(bias, units(scale, plain, 12))
    assert xp.to_numpy(found.scale).shape == ((1,) if "tensor" in scheme else (12,))
    expected = codes.astype(np.float32) * xp.to_numpy(found.scale)
    np.testing.assert_array_equal(xp.to_numpy(found.dequantize()), expected, strict=True)


def test_ties_go_to_the_even_code():
    weight = quantized(np.full((6, 2), 127.5, np.float32), "int8 tensor")
    assert weight.scale_values().tolist() == [[1.0]]
    bias = np.array([0.5, 1.5, -0.5, -2.5, 2.5, 3.0], np.float32)
    assert quantize_bias(bias, np.float32(1.0), weight).codes.tolist() == [0, 2, 0, -2, 2, 3]


def test_neighbouring_codes_of_32_bits_are_told_apart():
    weight = quantized(np.full((2, 2), 127.5, np.float32), "int8 tensor")
    # In float32 arithmetic this quotient would be 2^31 / 3 to 24 bits, 64 codes apart from one another.
    found = quantize_bias(np.array([2.0**31, -(2.0**31)], np.float32), np.float32(3.0), weight)
    assert found.codes.tolist() == [715827883, -715827883]


@given(
    bias=st.lists(st.floats(-1e6, 1e6, width=32), min_size=4, max_size=4),
    input_scale=st.floats(2.0**-10, 1e4, width=32),
    scheme=st.sampled_from(SCHEMES),
    seed=st.integers(0, 20),
)
def test_a_bias_that_fits_is_off_by_half_a_unit_at_most(bias, input_scale, scheme, seed):
    weight = weights(seed, out=4)
    before = quantized(weight, scheme)
    bias, scale = np.array(bias, np.float32), np.float32(input_scale)
    room, remarks = make_room(before, weight, bias, scale)
    fits = all(abs(Fraction(float(b))) <= LARGEST * unit for b, unit in zip(bias, units(scale, before, 4), strict=True))
    assert (room is before) == fits == (remarks == ())
    found = quantize_bias(bias, scale, room)
    for number, unit, code, value in zip(bias, units(scale, room, 4), found.codes, found.dequantize(), strict=True):
        exact = 0 if abs(number) < 2.0**-126 else Fraction(float(number))  # subnormals count as 0 everywhere
        assert abs(int(code)) <= LARGEST
        assert abs(exact - int(code) * unit) <= HALF * unit
        # The value is a float32: its code is rounded to 24 bits, and so is the product.
        assert abs(exact - Fraction(float(value))) <= HALF * unit + abs(exact) / 2**22


@pytest.mark.parametrize("scale_type", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("scheme", [scheme for scheme in SCHEMES if "channel" in scheme])
def test_a_channel_whose_bias_overflows_gets_the_least_scale_that_holds_it(scheme, scale_type):
    weight, scale = weights(), np.float32(1e-6)
    before = quantized(weight, scheme, scale_type)
    bias = np.linspace(-1, 1, 12, dtype=np.float32)
    bias[[3, 7]] = 2e5, -7e4
    wrong = np.array(by_fractions(bias, units(scale, before, 12)), np.float64)
    assert (np.abs(wrong) > LARGEST).tolist() == [channel in (3, 7) for channel in range(12)]
    room, (remark,) = make_room(before, weight, bias, scale)
    factor = (room.scale / before.scale).max()
    assert remark == (
        f"int32 does not hold 2 of 12 numbers of its bias: the scale of their weights grew {factor:.3g} times "
        "at most, and codes were rounded to nearest anew"
    )
    others = [channel for channel in range(12) if channel not in (3, 7)]
    for part in ("codes", "scale") + (() if before.zero_point is None else ("zero_point",)):
        assert np.array_equal(getattr(room, part)[others], getattr(before, part)[others])
    assert scale_fits(room.scale, scale_type).all()
    found = quantize_bias(bias, scale, room)
    assert found.codes.tolist() == by_fractions(bias, units(scale, room, 12))
    dtype = {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "float32": np.float32}[scale_type]
    for channel in (3, 7):
        # Two places below: the product of the scales is rounded too, and may round up to what is needed.
        below = np.asarray(room.scale[channel, 0], dtype)
        for _ in range(2 if scale_type == "float32" else 1):
            below = np.nextafter(below, dtype(0))
        unit = Fraction(float(np.float32(below) * scale))
        assert abs(Fraction(float(bias[channel]))) > LARGEST * unit
        assert 0.99 * LARGEST < abs(int(found.codes[channel])) <= LARGEST


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_weights_of_an_enlarged_scale_are_rounded_to_nearest_under_it(scheme):
    weight, scale = weights(), np.float32(1e-6)
    before = quantized(weight, scheme)
    bias = np.zeros(12, np.float32)
    bias[5] = 4.0 * LARGEST * 1e-6 * float(before.scale[5 % len(before.scale), 0])
    room, _ = make_room(before, weight, bias, scale)
    enlarged = [5] if len(before.scale) > 1 else list(range(12))
    # Four times the scale: half of it is off at most, and nothing is clipped.
    error = np.abs(room.dequantize() - weight)[enlarged]
    step = room.scale[5 % len(room.scale), 0]
    assert step == pytest.approx(4 * before.scale[5 % len(room.scale), 0], rel=2**-9)  # a place of float16, or two
    assert error.max() <= step * np.float32(0.5 + 2**-20)  # the quotient is rounded to float32
    assert error.max() > step / 8
    # The negative control: the old codes under the new scale are four times the weights.
    assert np.abs(replace(room, codes=before.codes).dequantize() - weight)[enlarged].max() > 2 * step


@pytest.mark.parametrize("scheme", SCHEMES)
def test_room_is_made_alike_in_every_framework(scheme, xp):
    weight, scale = weights(), np.float32(1e-6)
    before = quantized(weight, scheme)
    bias = np.linspace(-1e5, 2e5, 12, dtype=np.float32)
    expected, remarks = make_room(before, weight, bias, scale)
    there = [xp.from_numpy(np.asarray(array)) for array in (weight, bias, scale)]
    room, said = make_room(before.map(xp.from_numpy), *there)
    assert said == remarks != ()
    for part in ("codes", "scale"):
        np.testing.assert_array_equal(xp.to_numpy(getattr(room, part)), getattr(expected, part), strict=True)


def test_a_weight_with_one_scale_is_rounded_as_a_whole():
    weight, scale = weights(), np.float32(1e-6)
    before = quantized(weight, "int8 tensor")
    bias = np.full(12, 1.0, np.float32)
    bias[[0, 4, 5]] = 1e5, 3e5, -2e5
    room, (remark,) = make_room(before, weight, bias, scale)
    assert remark.startswith("int32 does not hold 3 of 12 numbers of its bias: the scale of the weight grew ")
    assert "at most" not in remark
    assert room.scale.shape == (1, 1)
    codes = quantize_bias(bias, scale, room).codes
    assert codes.tolist() == by_fractions(bias, units(scale, room, 12))
    assert 0.999 * LARGEST < codes[4] <= LARGEST


def test_scales_whose_product_float32_flushes_grow_too():
    weight = np.full((2, 4), 2.0**-100, np.float32)
    before = quantized(weight, "int8 channel", "float32")
    room, (remark,) = make_room(before, weight, np.array([0.0, 1e-20], np.float32), np.float32(2.0**-30))
    assert "2 of 2 numbers" in remark
    found = quantize_bias(np.array([0.0, 1e-20], np.float32), np.float32(2.0**-30), room)
    assert (found.scale >= 2.0**-126).all()
    assert found.dequantize() == pytest.approx([0.0, 1e-20], rel=1e-7)  # a float32


def test_a_bias_for_which_there_is_no_scale_is_an_error_with_both_numbers():
    weight = torch.from_numpy(weights())
    bias = torch.full((12,), 3e30)
    with pytest.raises(NonFiniteError, match=r"input is 1e-20: no scale .* a bias of 3e\+30; leave out `bias`"):
        make_room(quantized(weight, "int8"), weight, bias, torch.tensor(1e-20))


def test_scales_whose_product_is_beyond_float32_are_an_error_with_both_numbers():
    weight = torch.full((2, 4), 127.5 * 1e20)
    with pytest.raises(NonFiniteError, match=r"scale 1e\+30 of its input .* 1e\+20, is beyond float32; leave out"):
        quantize_bias(torch.ones(2), torch.tensor(1e30), quantized(weight, "int8"))
