"""Small floats: their constants and refusals (codes and rounding: conformance/test_small_floats.py)."""

import re

import numpy as np
import pytest

from fewbit.errors import SchemeError
from fewbit.formats.minifloat import BFLOAT16, E4M3, FLOAT16, Float
from fewbit.formats.number_format import NumberFormat


@pytest.mark.parametrize(
    ("form", "bits", "maximum", "smallest_normal"),
    [
        (E4M3, 8, 448.0, 2.0**-6),
        (Float(4, 3, specials="ieee"), 8, 240.0, 2.0**-6),
        (Float(5, 2, specials="ieee"), 8, 57344.0, 2.0**-14),
        (Float(2, 1, specials="fn"), 4, 4.0, 1.0),
        (FLOAT16, 16, 65504.0, 2.0**-14),
        (BFLOAT16, 16, 255 * 2.0**120, 2.0**-126),
    ],
    ids=str,
)
def test_constants_are_those_of_the_standards(form, bits, maximum, smallest_normal):
    assert (form.bits, form.maximum, form.smallest_normal) == (bits, maximum, smallest_normal)
    assert form.reach == form.maximum


def test_e4m3_is_a_number_format_without_zero_point():
    assert isinstance(E4M3, NumberFormat)
    assert not E4M3.takes_zero_point


def test_levels_are_sorted_symmetric_and_hold_zero_once():
    assert list(E4M3.levels) == sorted(set(E4M3.levels))
    assert [-level for level in reversed(E4M3.levels)] == list(E4M3.levels)
    assert len(E4M3.levels) == 253


def test_patterns_of_a_float_are_its_codes(xp):
    codes = np.arange(256, dtype=np.uint8)
    assert xp.to_numpy(E4M3.to_unsigned(xp.from_numpy(codes))).tolist() == codes.tolist()
    assert xp.to_numpy(E4M3.from_unsigned(xp.from_numpy(codes))).tolist() == codes.tolist()


@pytest.mark.parametrize(("exponent", "mantissa"), [(1, 3), (9, 3), (4, 0), (4, 11)])
def test_fields_outside_the_limits_are_refused(exponent, mantissa):
    message = f"e{exponent}m{mantissa} is outside e2..8 and m1..10"
    with pytest.raises(SchemeError, match=re.escape(message)):
        Float(exponent, mantissa)


@pytest.mark.parametrize("form", [FLOAT16, Float(4, 5), Float(5, 6, specials="none")], ids=str)
def test_codes_of_more_than_eight_bits_count_the_levels_up(form):
    positive = np.array(form.magnitudes, np.float32)
    codes = form.encode(np.concatenate([positive, -positive[1:]]))
    assert codes.dtype == np.uint16
    count = len(positive)
    sign = 2 ** (form.bits - 1)
    assert codes.tolist() == [*range(count), *range(sign + 1, sign + count)]
    assert form.decode(codes).tolist() == [*positive.tolist(), *(-positive[1:]).tolist()]


@pytest.mark.parametrize("form", [E4M3, FLOAT16, BFLOAT16], ids=str)
def test_round_saturates_and_keeps_the_shape(form, xp):
    largest = np.finfo(np.float32).max
    values = np.array([[largest, -largest, 0.0], [1.0, -2.0, 0.5]], np.float32)
    rounded = xp.to_numpy(form.round(xp.from_numpy(values)))
    assert rounded.tolist() == [[form.maximum, -form.maximum, 0.0], [1.0, -2.0, 0.5]]
