"""quantize and QTensor, as properties: exact zero, idempotent, monotone, equivariant, half a step; and edge cases."""

import ml_dtypes
import numpy as np
import pytest
import torch
from array_api_compat import array_namespace, device
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewbit.formats.scale_type import scale_fits
from fewbit.numerics.groups import beside_boxes, merge, split
from fewbit.qtensor import QTensor, quantize, scale_shape
from fewbit.schemes.block_formats import BLOCK_FORMATS
from fewbit.schemes.notation import parse_scheme

SYMMETRIC = ["int2 g16", "int4 g16", "int4 minmax g16", "int4 narrow channel", "int8 channel", "int8 narrow tensor"]
ASYMMETRIC = [
    "int1 asym g16",
    "int3 asym g16",
    "int4 asym channel",
    "int8 asym g16",
    "int8 narrow asym tensor",
    "uint4 asym",
]
OTHERS = ["e4m3 g16", "e4m3 tensor", "e2m1 g16", "nf4 g16", "ternary g16 absmax"]
ALL = [*SYMMETRIC, *ASYMMETRIC, *OTHERS]

#: Zeros are frequent, scales are normal in float32, and nothing overflows.
NUMBERS = st.just(0.0) | st.floats(2.0**-60, 2.0**60, width=32) | st.floats(-(2.0**60), -(2.0**-60), width=32)
WEIGHTS = hnp.arrays(np.float32, st.tuples(st.integers(1, 3), st.integers(1, 40)), elements=NUMBERS)


def normals(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).normal(size=shape).astype(np.float32)


def in_steps(quantized: QTensor, values: np.ndarray) -> np.ndarray:
    """Return `values` in units of their scale, in float64."""
    boxes = split(values.astype(np.float64), quantized.scheme.granularity.box(quantized.shape))
    return merge(boxes / beside_boxes(quantized.scale), quantized.shape)


def assert_same(one: QTensor, other: QTensor) -> None:
    for a, b in [(one.codes, other.codes), (one.scale, other.scale), (one.zero_point, other.zero_point)]:
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_array_equal(a, b, strict=True)


@pytest.mark.parametrize("text", ALL)
@given(weight=WEIGHTS)
def test_zero_is_exact_under_every_scheme(text, weight):
    assert (quantize(weight, parse_scheme(text)).dequantize()[weight == 0] == 0).all()


@pytest.mark.parametrize("text", ALL)
@given(weight=WEIGHTS)
def test_rounding_what_was_rounded_changes_nothing(text, weight):
    quantized = quantize(weight, parse_scheme(text))
    decoded = quantized.dequantize()
    zero = None if quantized.zero_point is None else beside_boxes(quantized.zero_point).astype(np.float32)
    boxes = split(decoded, quantized.scheme.granularity.box(quantized.shape))
    again = quantized.scheme.grid.rounded(boxes, beside_boxes(quantized.scale), zero)
    np.testing.assert_array_equal(merge(again, quantized.shape), decoded, strict=True)


@pytest.mark.parametrize("text", ALL)
@given(weight=WEIGHTS)
def test_a_larger_number_of_a_group_never_decodes_smaller(text, weight):
    one_group = np.sort(weight.ravel())[None, :16]
    assert (np.diff(quantize(one_group, parse_scheme(text)).dequantize()) >= 0).all()


@pytest.mark.parametrize("text", ALL)
@given(weight=WEIGHTS, exponent=st.integers(-40, 40))
def test_a_power_of_two_moves_into_the_scale(text, weight, exponent):
    factor = np.float32(2.0**exponent)
    plain, moved = (quantize(array, parse_scheme(text)) for array in (weight, weight * factor))
    np.testing.assert_array_equal(moved.codes, plain.codes)
    np.testing.assert_array_equal(moved.dequantize(), plain.dequantize() * factor)


# Scale, reciprocal, product and decoded value are each rounded once, by 2^-24 relative, in up to 256 steps.
SLACK = 4 * 256 * 2.0**-24


@pytest.mark.parametrize("text", SYMMETRIC)
@given(weight=WEIGHTS)
def test_symmetric_integers_are_off_by_half_a_step_at_most(text, weight):
    quantized = quantize(weight, parse_scheme(text))
    assert np.abs(in_steps(quantized, quantized.dequantize()) - in_steps(quantized, weight)).max() <= 0.5 + SLACK


@pytest.mark.parametrize("text", ASYMMETRIC)
@given(weight=WEIGHTS)
def test_asymmetric_integers_are_off_by_half_a_step_inside_and_one_at_the_ends(text, weight):
    quantized = quantize(weight, parse_scheme(text))
    form = quantized.scheme.format
    error = np.abs(in_steps(quantized, quantized.dequantize()) - in_steps(quantized, weight))
    inside = (quantized.codes > form.qmin) & (quantized.codes < form.qmax)
    assert (error[inside] <= 0.5 + SLACK).all()
    assert error.max() <= 1 + SLACK  # the zero point is rounded, too, and may push an end out by half a step


@pytest.mark.parametrize("text", ["e4m3 g16", "e4m3 tensor"])
@given(weight=WEIGHTS)
def test_e4m3_is_off_by_half_the_gap_of_its_neighbours_at_most(text, weight):
    quantized = quantize(weight, parse_scheme(text))
    wanted = np.abs(in_steps(quantized, weight))
    # 4 significant bits: half a gap is 2^-4 of the binade; in the lowest binade 2^-10.
    half_gap = np.maximum(2.0 ** (np.floor(np.log2(np.maximum(wanted, 2.0**-20))) - 4), 2.0**-10)
    error = np.abs(in_steps(quantized, quantized.dequantize()) - in_steps(quantized, weight))
    assert (error <= half_gap + wanted * 4 * 2.0**-24).all()  # four roundings, as above


@pytest.mark.parametrize("text", ALL)
def test_a_group_of_zeros_has_scale_one_and_codes_at_the_zero_point(text, xp):
    quantized = quantize(xp.from_numpy(np.zeros((2, 40), np.float32)), parse_scheme(text))
    assert (xp.to_numpy(quantized.scale) == 1).all()
    # What stands for 0: the zero point, the code of the level 0, or the lowest code that starts a positive range.
    codes = xp.to_numpy(quantized.codes)
    middle = quantized.scheme.format.encode(np.zeros(1, np.float32))
    zero = middle if quantized.zero_point is None else xp.to_numpy(quantized.zero_point).ravel()[:1]
    assert (codes == zero).all()
    assert (xp.to_numpy(quantized.dequantize()) == 0).all()


@pytest.mark.parametrize("text", ALL)
def test_subnormal_numbers_count_as_zero(text, xp):
    weight = normals(3, 40)
    weight[0], weight[1, ::3] = 0, 0
    with_subnormals = weight.copy()
    with_subnormals[0] = np.float32(1e-39)
    with_subnormals[1, ::3] = np.nextafter(np.float32(2.0**-126), np.float32(0)) * np.float32(-1)
    quantized = quantize(xp.from_numpy(with_subnormals), parse_scheme(text))
    assert_same(quantized.map(xp.to_numpy), quantize(weight, parse_scheme(text)))


@pytest.mark.parametrize("text", ALL)
def test_bfloat16_weights_give_what_their_float32_values_give(text):
    narrow = normals(4, 100).astype(ml_dtypes.bfloat16)
    expected = quantize(narrow.astype(np.float32), parse_scheme(text))
    assert_same(quantize(narrow, parse_scheme(text)), expected)
    of_torch = torch.from_numpy(narrow.astype(np.float32)).to(torch.bfloat16)
    assert_same(quantize(of_torch, parse_scheme(text)).map(lambda array: array.numpy()), expected)


@pytest.mark.parametrize("scale_type", ["float16", "bfloat16"])
@pytest.mark.parametrize("text", ALL)
def test_scales_are_exact_in_their_type_before_codes_are_made(text, scale_type):
    scheme = parse_scheme(text).stored_as(scale_type)
    weight = normals(4, 100)
    quantized = quantize(weight, scheme)
    assert scale_fits(quantized.scale, scale_type).all()
    assert not scale_fits(quantize(weight, parse_scheme(text)).scale, scale_type).all()
    box = scheme.granularity.box(weight.shape)
    zero = None if quantized.zero_point is None else beside_boxes(quantized.zero_point).astype(np.float32)
    codes = scheme.grid.codes(split(weight, box), beside_boxes(quantized.scale), zero)
    np.testing.assert_array_equal(merge(codes, weight.shape), quantized.codes, strict=True)


def test_a_scale_that_would_be_subnormal_in_float16_stays_float32():
    weight = normals(1, 64) * np.float32(1e-6)
    plain = quantize(weight, parse_scheme("int8 channel"))
    assert_same(quantize(weight, parse_scheme("int8 channel").stored_as("float16")), plain)
    assert not scale_fits(plain.scale, "float16").any()


@pytest.mark.parametrize("text", [*ALL, "int4 tile3x16", "int4 channel:1", "int4 channel:0x2", "int4 asym token"])
def test_working_in_slices_changes_nothing(text, monkeypatch):
    weight = normals(7, 50)
    expected = quantize(weight, parse_scheme(text))
    for numbers in (1, 50, 120, 349):  # a row or less, one row, two, and all but one number
        monkeypatch.setattr("fewbit.box_bounds.numbers_at_once", lambda values, at_once=numbers: at_once)
        assert_same(quantize(weight, parse_scheme(text)), expected)


@pytest.mark.parametrize("text", ["int4 g16", "int4 asym g16", "e4m3 g16", "int8 token"])
def test_leading_axes_are_so_many_rows(text):
    weight = normals(2, 3, 40)
    stacked, flat = quantize(weight, parse_scheme(text)), quantize(weight.reshape(6, 40), parse_scheme(text))
    np.testing.assert_array_equal(stacked.dequantize(), flat.dequantize().reshape(2, 3, 40), strict=True)


@pytest.mark.parametrize("text", [*ALL, "int4 tile3x16", "int8 channel:1"])
def test_parameters_have_the_promised_shape_type_framework_and_device(text, xp):
    weight = xp.from_numpy(normals(4, 100))
    quantized = quantize(weight, parse_scheme(text))
    assert quantized.shape == (4, 100)
    assert tuple(quantized.scale.shape) == scale_shape((4, 100), quantized.scheme)
    assert (quantized.zero_point is None) == quantized.scheme.symmetric
    if quantized.zero_point is not None:
        assert quantized.zero_point.shape == quantized.scale.shape
        assert quantized.zero_point.dtype == quantized.codes.dtype
    assert xp.to_numpy(quantized.scale).dtype == np.float32
    for array in (quantized.codes, quantized.scale, quantized.dequantize()):
        assert array_namespace(array) is array_namespace(weight)
        assert device(array) == device(weight)


@pytest.mark.parametrize("name", BLOCK_FORMATS)
def test_whole_schemes_are_the_same_on_every_framework(name, xp):
    weight = normals(20, 100)
    weight[0], weight[1, 16:32] = 0, 0
    expected = quantize(weight, parse_scheme(name))
    quantized = quantize(xp.from_numpy(weight), parse_scheme(name))
    found = quantized.map(xp.to_numpy)
    np.testing.assert_array_equal(found.codes, expected.codes, strict=True)
    np.testing.assert_array_equal(found.scale.codes, expected.scale.codes, strict=True)
    np.testing.assert_array_equal(xp.to_numpy(quantized.dequantize()), expected.dequantize(), strict=True)
    assert (xp.to_numpy(quantized.dequantize())[weight == 0] == 0).all()


def test_map_moves_every_array():
    quantized = quantize(normals(2, 32), parse_scheme("int4 asym g16"))
    moved = quantized.map(torch.from_numpy)
    assert all(isinstance(array, torch.Tensor) for array in (moved.codes, moved.scale, moved.zero_point))
    np.testing.assert_array_equal(moved.dequantize().numpy(), quantized.dequantize(), strict=True)
