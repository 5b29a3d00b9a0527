"""Every format of 8 bits or fewer gives the nearest of its sorted levels; floats equal torch's and ml_dtypes' casts."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from fewbit.catalogue import lookup
from fewbit.formats import FORMATS
from fewbit.formats.codebook import BINARY, NF4, TERNARY, Codebook
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import BFLOAT16, E4M3, FLOAT16, Float
from fewbit.formats.number_format import NumberFormat

#: fewbit's format, and the type of ml_dtypes with the same bits.
PEERS = {
    "e4m3fn": (E4M3, ml_dtypes.float8_e4m3fn),
    "e4m3": (Float(4, 3, specials="ieee"), ml_dtypes.float8_e4m3),
    "e5m2": (Float(5, 2, specials="ieee"), ml_dtypes.float8_e5m2),
    "e3m4": (Float(3, 4, specials="ieee"), ml_dtypes.float8_e3m4),
    "e4m3fnuz": (Float(4, 3, specials="fnuz"), ml_dtypes.float8_e4m3fnuz),
    "e5m2fnuz": (Float(5, 2, specials="fnuz"), ml_dtypes.float8_e5m2fnuz),
    "e4m3b11fnuz": (Float(4, 3, bias=11, specials="fnuz"), ml_dtypes.float8_e4m3b11fnuz),
    "e2m1": (Float(2, 1, specials="none"), ml_dtypes.float4_e2m1fn),
    "e2m3": (Float(2, 3, specials="none"), ml_dtypes.float6_e2m3fn),
    "e3m2": (Float(3, 2, specials="none"), ml_dtypes.float6_e3m2fn),
}
INTEGERS = [
    *(Int(bits, signed=signed) for bits in range(1, 9) for signed in (True, False)),
    *(Int(bits, narrow=True) for bits in range(2, 9)),
]
FLOATS = [
    Float(4, 3, bias=11, specials="fnuz"),
    *(Float(e, m, specials=s) for e in range(2, 7) for m in range(1, 8 - e) for s in ("fn", "fnuz", "ieee", "none")),
]
CODEBOOKS = [NF4, BINARY, TERNARY, Codebook((0.0, 0.1, 0.2, 7.0), "uneven")]
#: What has more than 8 bits has too many levels to compare each with each.
CATALOGUED = [form for name in FORMATS if (form := lookup(FORMATS, name, what="number format")).bits <= 8]


def spelled(form: NumberFormat) -> str:
    """The format in words, for the names of tests."""
    return form.name + " narrow" * getattr(form, "narrow", False)


def every_bfloat16(largest: float) -> np.ndarray:
    """Every bfloat16 number of a magnitude up to `largest` but minus zero, as float32."""
    patterns = np.delete(np.arange(2**16, dtype=np.uint32), 0x8000) << 16
    values = patterns.view(np.float32)
    return values[np.abs(values) <= largest]  # drops NaN, too


def around(points: np.ndarray) -> np.ndarray:
    """Return each of `points` with the float32 numbers just below and above it."""
    points = np.asarray(points, np.float32)
    return np.concatenate(
        [np.nextafter(points, -np.inf, dtype=np.float32), points, np.nextafter(points, np.float32(np.inf))]
    )


def midpoints(levels: tuple[float, ...]) -> np.ndarray:
    exact = np.array(levels, np.float64)
    return (exact[1:] + exact[:-1]) / 2


def nearest_codes(values: np.ndarray, codes: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Brute force: the code of the least distance, among equals the even one. In float64 near distances are exact."""
    order = np.argsort(codes % 2, kind="stable")  # argmin takes the first of equals
    distances = np.abs(values.astype(np.float64)[:, None] - decoded.astype(np.float64)[order])
    return codes[order][np.argmin(distances, axis=1)]


def telling_values(form: NumberFormat) -> np.ndarray:
    """Levels, midpoints, the neighbours of both, random numbers and numbers out of range."""
    levels = np.array(form.levels)
    span = levels[-1] - levels[0]
    rng = np.random.default_rng(0)
    spread = [rng.uniform(levels[0] - span, levels[-1] + span, 500), rng.normal(size=200), [2.0**-40, -(2.0**-40)]]
    values = np.concatenate([around(levels), around(midpoints(form.levels)), *spread]).astype(np.float32)
    return values[(values == 0) | (np.abs(values) >= 2.0**-40)]  # smaller ones vanish in the distances


def test_e4m3_encode_equals_the_casts_for_every_bfloat16(xp):
    values = every_bfloat16(448.0)
    assert len(values) > 34000
    values = np.where(np.abs(values) < 2.0**-126, np.float32(0), values)  # counts as 0 everywhere
    codes = xp.to_numpy(E4M3.encode(xp.from_numpy(values)))
    np.testing.assert_array_equal(codes, torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy())
    np.testing.assert_array_equal(codes, values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


def test_e4m3_encode_equals_the_casts_on_and_beside_every_midpoint(xp):
    values = around(midpoints(E4M3.levels))
    assert len(values) == 3 * 252
    codes = xp.to_numpy(E4M3.encode(xp.from_numpy(values)))
    np.testing.assert_array_equal(codes, torch.from_numpy(values).to(torch.float8_e4m3fn).view(torch.uint8).numpy())
    np.testing.assert_array_equal(codes, values.astype(ml_dtypes.float8_e4m3fn).view(np.uint8))


def test_minus_zero_encodes_as_zero(xp):
    # The casts keep the sign of zero; codes do not, so that 0 has one code.
    assert xp.to_numpy(E4M3.encode(xp.from_numpy(np.array([-0.0, 0.0], np.float32)))).tolist() == [0, 0]


@pytest.mark.parametrize("peer", PEERS)
def test_decode_equals_ml_dtypes_for_every_code(peer, xp):
    form, dtype = PEERS[peer]
    codes = np.arange(2**form.bits, dtype=np.uint8)
    expected = codes.view(dtype).astype(np.float32)
    expected[np.isinf(expected)] = np.nan  # fewbit has no infinity
    decoded = xp.to_numpy(form.decode(xp.from_numpy(codes)))
    np.testing.assert_array_equal(decoded, expected)
    number = ~np.isnan(expected)
    np.testing.assert_array_equal(np.signbit(decoded[number]), np.signbit(expected[number]))


@pytest.mark.parametrize("peer", PEERS)
def test_levels_are_the_finite_numbers_of_ml_dtypes(peer):
    form, dtype = PEERS[peer]
    values = np.arange(2**form.bits, dtype=np.uint8).view(dtype).astype(np.float64)
    assert form.levels == tuple(np.unique(values[np.isfinite(values)]).tolist())
    assert form.maximum == float(ml_dtypes.finfo(dtype).max)
    assert form.smallest_normal == float(ml_dtypes.finfo(dtype).smallest_normal)


@pytest.mark.parametrize("peer", PEERS)
def test_encode_and_round_equal_the_cast_of_ml_dtypes(peer, xp):
    form, dtype = PEERS[peer]
    values = np.concatenate([every_bfloat16(form.maximum), around(midpoints(form.levels))])
    array = xp.from_numpy(values)
    # Magnitudes below 2^-126 count as 0, which has no sign: XLA flushes them.
    cast = np.where(np.abs(values) < 2.0**-126, np.float32(0), values).astype(dtype)
    np.testing.assert_array_equal(xp.to_numpy(form.encode(array)), cast.view(np.uint8), strict=True)
    np.testing.assert_array_equal(xp.to_numpy(form.round(array)), cast.astype(np.float32), strict=True)


@pytest.mark.parametrize(
    ("form", "dtype"), [(FLOAT16, torch.float16), (BFLOAT16, torch.bfloat16)], ids=["float16", "bfloat16"]
)
def test_round_equals_the_torch_cast_wherever_the_type_is_normal(form, dtype, xp):
    numbers = torch.arange(2**15, dtype=torch.int32).to(torch.int16).view(dtype).float().numpy()
    numbers = numbers[(numbers >= form.smallest_normal) & (numbers <= form.maximum)]  # drops NaN, too
    values = np.concatenate([numbers, around(midpoints(tuple(numbers.tolist())))])
    values = np.concatenate([values, -values])
    rounded = xp.to_numpy(form.round(xp.from_numpy(values)))
    wrong = np.flatnonzero(rounded != torch.from_numpy(values).to(dtype).float().numpy())
    assert wrong.size == 0, f"{wrong.size} of {values.size} differ, the largest at {np.abs(values[wrong]).max()}"


@pytest.mark.parametrize("form", INTEGERS, ids=spelled)
def test_integer_encode_is_the_nearest_level_with_ties_to_even(form, xp):
    inputs = telling_values(form)
    codes = np.arange(form.qmin, form.qmax + 1)
    assert form.levels == tuple(codes.tolist())
    found = xp.to_numpy(form.encode(xp.from_numpy(inputs)))
    assert found.dtype == (np.int8 if form.signed else np.uint8)
    np.testing.assert_array_equal(found, nearest_codes(inputs, codes, codes))


@pytest.mark.parametrize("form", FLOATS, ids=spelled)
def test_float_encode_is_the_nearest_level_with_ties_to_even(form, xp):
    inputs = telling_values(form)
    codes = np.arange(2**form.bits, dtype=np.uint8)
    decoded = form.decode(codes)
    codes, decoded = codes[np.isfinite(decoded)], decoded[np.isfinite(decoded)]
    assert form.levels == tuple(np.unique(decoded).tolist())
    positive = np.flatnonzero(codes < 2 ** (form.bits - 1))
    expected = nearest_codes(np.abs(inputs), codes[positive], decoded[positive])
    signed = (inputs < 0) & ((expected > 0) | (form.specials != "fnuz"))  # fnuz has no code for minus zero
    expected = expected + signed * np.uint8(2 ** (form.bits - 1))
    found = xp.to_numpy(form.encode(xp.from_numpy(inputs)))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", CODEBOOKS, ids=spelled)
def test_codebook_encode_is_the_nearest_entry_with_ties_to_even(form, xp):
    inputs = telling_values(form)
    codes = np.arange(len(form.entries), dtype=np.uint8)
    np.testing.assert_array_equal(form.decode(codes), np.array(form.levels, np.float32), strict=True)
    found = xp.to_numpy(form.encode(xp.from_numpy(inputs)))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, nearest_codes(inputs, codes, np.array(form.levels)))


@pytest.mark.parametrize("form", [*INTEGERS, *FLOATS, *CODEBOOKS], ids=spelled)
def test_values_out_of_range_saturate(form, xp):
    largest = np.finfo(np.float32).max
    codes = form.encode(xp.from_numpy(np.array([-largest, largest])))
    assert xp.to_numpy(form.decode(codes)).tolist() == [form.levels[0], form.levels[-1]]


@pytest.mark.parametrize("form", [*INTEGERS, *FLOATS, *CODEBOOKS], ids=spelled)
def test_encode_undoes_decode_for_every_level(form):
    levels = np.array(form.levels, np.float32)
    codes = form.encode(levels)
    patterns = form.to_unsigned(codes)
    assert patterns.dtype == np.uint8
    assert len(np.unique(patterns)) == len(levels)
    assert patterns.max() < 2**form.bits
    np.testing.assert_array_equal(form.decode(form.from_unsigned(patterns)), levels, strict=True)


@pytest.mark.parametrize("form", CATALOGUED, ids=spelled)
def test_every_catalogued_format_gives_the_nearest_level_with_ties_to_the_even_code(form, xp):
    inputs, levels = telling_values(form), np.array(form.levels, np.float32)
    codes = form.encode(levels)
    assert len(np.unique(codes)) == len(levels)
    expected = form.decode(nearest_codes(inputs, codes, levels))
    encoded = form.encode(xp.from_numpy(inputs))
    np.testing.assert_array_equal(xp.to_numpy(form.decode(encoded)), expected)
    np.testing.assert_array_equal(xp.to_numpy(form.round(xp.from_numpy(inputs))), expected)
