"""Scales rounded to the type they are stored in equal the casts of NumPy and ml_dtypes, or stay float32."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewbit.formats.scale_type import round_scale, round_scale_up, scale_fits

#: Name: the type, its least normal and its largest number.
TYPES = {
    "float16": (np.float16, np.float32(2.0**-14), np.float32(65504)),
    "bfloat16": (ml_dtypes.bfloat16, np.float32(2.0**-126), np.float32(255 * 2.0**120)),
}
#: Positive normal float32: what the range methods make.
SCALES = hnp.arrays(np.float32, 20, elements=st.floats(2.0**-126, float(np.finfo(np.float32).max), width=32))
#: Among which most are normal in float16, too.
LIKELY = hnp.arrays(np.float32, 20, elements=st.floats(2.0**-15, 2.0**16, width=32))


@pytest.mark.parametrize("scale_type", TYPES)
@given(scales=SCALES | LIKELY)
def test_scales_round_to_the_nearest_of_their_type_or_stay(scale_type, scales):
    dtype, least, most = TYPES[scale_type]
    inside = (scales >= least) & (scales <= most)
    expected = scales.copy()
    expected[inside] = scales[inside].astype(dtype).astype(np.float32)
    np.testing.assert_array_equal(round_scale(scales, scale_type), expected, strict=True)


@pytest.mark.parametrize("scale_type", TYPES)
@given(scales=SCALES | LIKELY)
def test_a_scale_fits_when_the_cast_keeps_it_and_it_is_normal(scale_type, scales):
    dtype, least, most = TYPES[scale_type]
    inside = (scales >= least) & (scales <= most)
    kept = np.zeros(scales.shape, np.bool_)
    kept[inside] = scales[inside].astype(dtype).astype(np.float32) == scales[inside]
    np.testing.assert_array_equal(scale_fits(scales, scale_type), kept, strict=True)


@pytest.mark.parametrize("scale_type", TYPES)
def test_what_was_rounded_inside_the_range_fits(scale_type, xp):
    _, least, most = TYPES[scale_type]
    scales = np.geomspace(least, most, 999, dtype=np.float32)
    scales = np.clip(scales, least, most)
    rounded = round_scale(xp.from_numpy(scales), scale_type)
    assert xp.to_numpy(scale_fits(rounded, scale_type)).all()
    assert not xp.to_numpy(scale_fits(xp.from_numpy(scales), scale_type)).all()


@pytest.mark.parametrize(
    ("scale_type", "scale"),
    [
        ("float16", np.nextafter(np.float32(2.0**-14), np.float32(0))),
        ("float16", np.float32(2.0**-20)),  # float16 holds it, but as a subnormal
        ("float16", np.nextafter(np.float32(65504), np.float32(1e6))),
        ("bfloat16", np.finfo(np.float32).max),
    ],
)
def test_a_scale_out_of_the_normal_range_of_its_type_stays_float32(scale_type, scale, xp):
    array = xp.from_numpy(np.array([scale]))
    assert xp.to_numpy(round_scale(array, scale_type)).tolist() == [scale]
    assert xp.to_numpy(scale_fits(array, scale_type)).tolist() == [False]


@pytest.mark.parametrize("scale_type", ["float32", None])
def test_float32_scales_stay_as_they_are(scale_type, xp):
    scales = np.array([0.1, 1 / 3, 1e30], np.float32)
    assert xp.to_numpy(round_scale(xp.from_numpy(scales), scale_type)).tolist() == scales.tolist()
    assert xp.to_numpy(scale_fits(xp.from_numpy(scales), "float32")).tolist() == [True, True, True]


#: Name: the type, and the bits of its positive normal numbers; of float32 some.
PATTERNS = {
    "float16": (np.float16, np.arange(0x0400, 0x7C00, dtype=np.uint16)),
    "bfloat16": (ml_dtypes.bfloat16, np.arange(0x0080, 0x7F80, dtype=np.uint16)),
    "float32": (np.float32, np.append(np.arange(0x00800000, 0x7F7FFFFF, 65_521), 0x7F7FFFFF).astype(np.uint32)),
}


@pytest.mark.parametrize("scale_type", PATTERNS)
def test_rounding_up_gives_the_least_number_of_the_type_that_is_no_less(scale_type, xp):
    dtype, patterns = PATTERNS[scale_type]
    numbers, below = (own.view(dtype).astype(np.float64) for own in (patterns, patterns - patterns.dtype.type(1)))
    for wanted in (numbers, below + (numbers - below) * 2.0**-20, (below + numbers) / 2, np.nextafter(numbers, 0)):
        inside = wanted >= numbers.min()  # smaller ones go to float32
        found = xp.to_numpy(round_scale_up(xp.from_numpy(wanted[inside]), scale_type))
        np.testing.assert_array_equal(found, numbers[inside].astype(np.float32), strict=True)


@pytest.mark.parametrize("least", [2.0**-20 * (1 + 2.0**-40), 65504 * (1 + 2.0**-40), 1e30])
def test_rounding_up_outside_the_normal_range_gives_a_float32(least, xp):
    found = xp.to_numpy(round_scale_up(xp.from_numpy(np.array([least])), "float16"))
    near = np.float32(least)
    assert found.tolist() == [near if float(near) >= least else np.nextafter(near, np.float32(np.inf))]
