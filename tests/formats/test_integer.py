"""Integers: their ranges, patterns and refusals (codes: conformance/test_small_floats.py)."""

import re

import numpy as np
import pytest

from fewbit.errors import SchemeError
from fewbit.formats.integer import Int
from fewbit.formats.number_format import NumberFormat

ALL = [
    *(Int(bits, signed=signed) for bits in (*range(1, 9), 16) for signed in (True, False)),
    *(Int(bits, narrow=True) for bits in (*range(2, 9), 16)),
]


@pytest.mark.parametrize(
    ("form", "qmin", "qmax", "reach"),
    [
        (Int(1), -1, 0, 0.5),
        (Int(2), -2, 1, 1.5),
        (Int(2, narrow=True), -1, 1, 1.0),
        (Int(4), -8, 7, 7.5),
        (Int(4, narrow=True), -7, 7, 7.0),
        (Int(4, signed=False), 0, 15, 15.0),
        (Int(8), -128, 127, 127.5),
        (Int(8, narrow=True), -127, 127, 127.0),
        (Int(8, signed=False), 0, 255, 255.0),
        (Int(16), -32768, 32767, 32767.5),
    ],
    ids=str,
)
def test_ranges_are_those_of_the_design(form, qmin, qmax, reach):
    assert (form.qmin, form.qmax, form.reach) == (qmin, qmax, reach)


@pytest.mark.parametrize("form", ALL, ids=str)
def test_an_integer_is_a_number_format_with_a_zero_point(form):
    assert isinstance(form, NumberFormat)
    assert form.takes_zero_point
    assert form.name == f"{'' if form.signed else 'u'}int{form.bits}"


@pytest.mark.parametrize("form", ALL, ids=str)
def test_patterns_are_codes_moved_to_start_at_zero(form, xp):
    width = 8 if form.bits <= 8 else 16
    codes = np.arange(form.qmin, form.qmax + 1).astype(f"{'' if form.signed else 'u'}int{width}")
    patterns = form.to_unsigned(xp.from_numpy(codes))
    expected = np.arange(2**form.bits - len(codes), 2**form.bits)  # narrow: pattern 0 is not used
    np.testing.assert_array_equal(xp.to_numpy(patterns), expected.astype(f"uint{width}"), strict=True)
    np.testing.assert_array_equal(xp.to_numpy(form.from_unsigned(patterns)), codes, strict=True)


@pytest.mark.parametrize("signed", [True, False])
def test_sixteen_bits_round_ties_to_even_and_saturate(signed, xp):
    form = Int(16, signed=signed)
    values = np.array([0.5, 1.5, 2.5, 30000.5, 30001.5, 1e9, -1e9], np.float32)
    codes = xp.to_numpy(form.encode(xp.from_numpy(values)))
    assert codes.tolist() == [0, 2, 2, 30000, 30002, form.qmax, form.qmin]


@pytest.mark.parametrize("bits", [-1, 0, 9, 15, 17, 32])
def test_other_widths_are_refused(bits):
    with pytest.raises(SchemeError, match=re.escape(f"int{bits} does not exist; integers have 1 to 8 bits, or 16")):
        Int(bits)


def test_narrow_needs_two_bits_and_a_sign():
    with pytest.raises(SchemeError, match=r"^int1 narrow has a single level; use int1 asym or int2 narrow$"):
        Int(1, narrow=True)
    with pytest.raises(SchemeError, match=r"^uint8 has no narrow range: it has no negative code to leave out$"):
        Int(8, narrow=True, signed=False)
