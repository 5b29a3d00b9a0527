"""Small floats equal the casts of torch and ml_dtypes, and the nearest of their sorted levels."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
import torch

from fewbit.catalogue import lookup
from fewbit.formats import FORMATS
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import BFLOAT16, E4M3, FLOAT16, Float

#: fewbit's format, and the type of ml_dtypes with the same bits.
PEERS = {
    "e4m3fn": (E4M3, ml_dtypes.float8_e4m3fn),
    "e4m3": (Float(4, 3, "ieee"), ml_dtypes.float8_e4m3),
    "e5m2": (Float(5, 2, "ieee"), ml_dtypes.float8_e5m2),
    "e3m4": (Float(3, 4, "ieee"), ml_dtypes.float8_e3m4),
}
INTEGERS = [Int(bits) for bits in range(1, 9)] + [Int(bits, narrow=True) for bits in range(2, 9)]
FLOATS = [Float(e, m, specials) for e in range(2, 7) for m in range(1, 8 - e) for specials in ("fn", "ieee")]


def every_bfloat16(largest: float) -> np.ndarray:
    """Every bfloat16 number of a magnitude up to `largest` but minus zero, as float32."""
    patterns = np.delete(np.arange(2**16, dtype=np.uint32), 0x8000) << 16
    values = patterns.view(np.float32)
    return values[np.abs(values) <= largest]  # drops NaN, too


def around(points: np.ndarray) -> np.ndarray:
    """Return each of `points` with the float32 numbers just below and above it."""
    points = np.asarray(points, np.float32)
    return np.concatenate([np.nextafter(points, -np.inf, dtype=np.float32), points, np.nextafter(points, np.float32(np.inf))])


def midpoints(levels: tuple[float, ...]) -> np.ndarray:
    exact = np.array(levels, np.float64)
    return (exact[1:] + exact[:-1]) / 2


def nearest_codes(values: np.ndarray, codes: np.ndarray, decoded: np.ndarray) -> np.ndarray:
    """Brute force: the code of the least distance, among equals the even one. Distances are exact in float64 here."""
    order = np.argsort(codes % 2, kind="stable")  # argmin takes the first of equals
    distances = np.abs(values.astype(np.float64)[:, None] - decoded.astype(np.float64)[order])
    return codes[order][np.argmin(distances, axis=1)]


@pytest.fixture
def inputs(request: pytest.FixtureRequest) -> np.ndarray:
    """Return levels, midpoints, their neighbours, random numbers and numbers out of range, for a format."""
    levels = np.array(request.param.levels)
    span = levels[-1] - levels[0]
    rng = np.random.default_rng(0)
    spread = [rng.uniform(levels[0] - span, levels[-1] + span, 500), rng.normal(size=200), [1e30, -1e30, 2.0**-100]]
    return np.concatenate([around(levels), around(midpoints(request.param.levels)), *spread]).astype(np.float32)


def test_e4m3_encode_equals_the_casts_for_every_bfloat16(xp):
    values = every_bfloat16(448.0)
    assert len(values) > 34000
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
    codes = np.arange(256, dtype=np.uint8)
    expected = codes.view(dtype).astype(np.float32)
    expected[np.isinf(expected)] = np.nan  # fewbit has no infinity
    decoded = xp.to_numpy(form.decode(xp.from_numpy(codes)))
    np.testing.assert_array_equal(decoded, expected)
    np.testing.assert_array_equal(np.signbit(decoded[:129]), codes[:129] >= 128)  # code 128 is minus zero


@pytest.mark.parametrize("peer", PEERS)
def test_levels_are_the_finite_numbers_of_ml_dtypes(peer):
    form, dtype = PEERS[peer]
    values = np.arange(256, dtype=np.uint8).view(dtype).astype(np.float64)
    assert form.levels == tuple(np.unique(values[np.isfinite(values)]).tolist())
    assert form.maximum == float(ml_dtypes.finfo(dtype).max)
    assert form.smallest_normal == float(ml_dtypes.finfo(dtype).smallest_normal)


@pytest.mark.parametrize("peer", PEERS)
def test_round_equals_the_cast_to_ml_dtypes_and_back(peer, xp):
    form, dtype = PEERS[peer]
    values = np.concatenate([every_bfloat16(form.maximum), around(midpoints(form.levels))])
    rounded = xp.to_numpy(form.round(xp.from_numpy(values)))
    np.testing.assert_array_equal(rounded, values.astype(dtype).astype(np.float32), strict=True)


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


@pytest.mark.parametrize(("form", "inputs"), [(form, form) for form in INTEGERS], ids=str, indirect=["inputs"])
def test_integer_encode_is_the_nearest_level_with_ties_to_even(form, inputs, xp):
    codes = np.arange(form.qmin, form.qmax + 1)
    assert form.levels == tuple(codes.tolist())
    found = xp.to_numpy(form.encode(xp.from_numpy(inputs)))
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, nearest_codes(inputs, codes, codes))


@pytest.mark.parametrize(("form", "inputs"), [(form, form) for form in FLOATS], ids=str, indirect=["inputs"])
def test_float_encode_is_the_nearest_level_with_ties_to_even(form, inputs, xp):
    codes = np.arange(2**form.bits, dtype=np.uint8)
    decoded = form.decode(codes)
    codes, decoded = codes[np.isfinite(decoded)], decoded[np.isfinite(decoded)]
    assert form.levels == tuple(np.unique(decoded).tolist())
    positive = np.flatnonzero(codes < 2 ** (form.bits - 1))
    expected = nearest_codes(np.abs(inputs), codes[positive], decoded[positive])
    expected = expected + (inputs < 0) * np.uint8(2 ** (form.bits - 1))
    found = xp.to_numpy(form.encode(xp.from_numpy(inputs)))
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("form", [*INTEGERS, *FLOATS], ids=str)
def test_encode_undoes_decode(form):
    patterns = np.arange(2**form.bits, dtype=np.uint8)
    values = form.decode(form.from_unsigned(patterns))
    allowed = np.isin(values, form.levels) & ~((values == 0) & np.signbit(values))
    assert allowed.sum() == len(form.levels)
    codes = form.encode(values[allowed])
    np.testing.assert_array_equal(form.to_unsigned(codes), patterns[allowed])


@pytest.mark.parametrize("name", FORMATS)
def test_every_catalogued_format_is_compared_here(name):
    form = lookup(FORMATS, name, what="number format")
    assert form in [*INTEGERS, *FLOATS]
    assert form.name == name
