"""Every scheme, on every framework, equals a scalar oracle in plain Python: `==`, no tolerance.

The oracle is DESIGN section 4 word for word. Python floats hold products of two float32 exactly and quotients to
more than 2 * 24 + 2 bits, so rounding each result with `struct` is IEEE float32 arithmetic without NumPy.
"""

from __future__ import annotations

import struct
from bisect import bisect
from functools import cache
from typing import NamedTuple

import ml_dtypes
import numpy as np
import pytest

from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

SHAPE = (4, 100)  # neither 16 nor 64 divides 100: the last group is uneven


class Spec(NamedTuple):
    """A scheme in the oracle's own words; 0 bits stand for e4m3."""

    bits: int
    kind: str  # the words between the format and the granularity
    cut: str
    signed: bool = True

    @property
    def text(self) -> str:
        word = f"{'' if self.signed else 'u'}int{self.bits}" if self.bits else "e4m3"
        return f"{word} {self.kind} {self.cut}"

    @property
    def asymmetric(self) -> bool:
        return "asym" in self.kind

    @property
    def narrow(self) -> bool:
        return "narrow" in self.kind


CUTS = ("tensor", "channel", "g16", "g64")
SPECS = [
    *(Spec(1, "asym", cut) for cut in CUTS),
    *(
        Spec(bits, kind, cut)
        for bits in range(2, 9)
        for kind in ("sym", "asym", "narrow", "narrow asym")
        for cut in CUTS
    ),
    *(Spec(bits, kind, cut, signed=False) for bits in (4, 8) for kind in ("sym", "asym") for cut in CUTS),
    *(Spec(0, "sym", cut) for cut in CUTS),
]


# ------------------------------------------------------------------------------------------------------ the oracle


def float32(value: float) -> float:
    return struct.unpack("<f", struct.pack("<f", value))[0]


def float16(value: float) -> float:
    return struct.unpack("<e", struct.pack("<e", value))[0]


def bfloat16(value: float) -> float:
    (pattern,) = struct.unpack("<I", struct.pack("<f", value))
    pattern += 0x7FFF + (pattern >> 16 & 1)
    return struct.unpack("<f", struct.pack("<I", pattern & 0xFFFF0000))[0]


def stored(scale: float, scale_type: str | None) -> float:
    """Round to the type of the file; what is not normal there stays float32."""
    least, most, rounded = {
        None: (0.0, float("inf"), float32),
        "float16": (2.0**-14, 65504.0, float16),
        "bfloat16": (2.0**-126, (2 - 2.0**-7) * 2.0**127, bfloat16),
    }[scale_type]
    return rounded(scale) if least <= scale <= most else scale


E4M3_MAGNITUDES = [m / 8 * 2.0**-6 for m in range(8)] + [
    (1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8) if (e, m) != (15, 7)
]


def e4m3_code(value: float) -> int:
    magnitude = min(abs(value), 448.0)
    above = min(bisect(E4M3_MAGNITUDES, magnitude), 126)
    code = min((above - 1, above), key=lambda c: (abs(magnitude - E4M3_MAGNITUDES[c]), c % 2))
    return code + 128 * (value < 0)


def solve_group(values: list[float], spec: Spec, scale_type: str | None):
    """Return (scale, zero point or None, codes, decoded) of the numbers that share a scale."""
    values = [0.0 if abs(value) < 2.0**-126 else value for value in values]
    largest = max(abs(value) for value in values)
    if spec.bits == 0:
        scale = stored(_positive(float32(largest * float32(1 / 448))), scale_type)
        codes = [e4m3_code(float32(value * float32(1 / scale))) for value in values]
        signed = [(-1.0 if code >= 128 else 1.0) * E4M3_MAGNITUDES[code % 128] for code in codes]
        return scale, None, codes, [float32(level * scale) for level in signed]
    qmax = 2 ** (spec.bits - spec.signed) - 1
    qmin = -qmax - (not spec.narrow) if spec.signed else 0
    zero = 0
    if spec.asymmetric:
        low, high = min(0.0, *values), max(0.0, *values)
        scale = float32(float32(high - low) * float32(1 / (qmax - qmin)))
    else:
        scale = float32(largest * float32(2 / (2**spec.bits - 1) if spec.signed and not spec.narrow else 1 / qmax))
    scale = stored(_positive(scale), scale_type)
    reciprocal = float32(1 / scale)
    if spec.asymmetric:
        zero = min(max(round(float32(-low * reciprocal)) + qmin, qmin), qmax)
    codes = [min(max(round(float32(value * reciprocal)) + zero, qmin), qmax) for value in values]
    decoded = [float32((code - zero) * scale) for code in codes]
    return scale, zero if spec.asymmetric else None, codes, decoded


def _positive(scale: float) -> float:
    return 1.0 if scale < 2.0**-126 else scale


def boxes(cut: str):
    """Yield (place of the scale, rows, columns) of each group."""
    rows, columns = SHAPE
    if cut == "tensor":
        yield (0, 0), slice(0, rows), slice(0, columns)
        return
    width = columns if cut == "channel" else int(cut[1:])
    for row in range(rows):
        for group in range(-(-columns // width)):
            yield (row, group), slice(row, row + 1), slice(group * width, (group + 1) * width)


@cache
def oracle(spec: Spec, case: str) -> dict[str, np.ndarray]:
    make_weight, scale_type = CASES[case]
    weight = make_weight(spec)
    places = list(boxes(spec.cut))
    shape = tuple(last + 1 for last in places[-1][0])
    code_type = np.int8 if spec.bits and spec.signed else np.uint8
    found = {
        "codes": np.zeros(SHAPE, code_type),
        "scale": np.zeros(shape, np.float32),
        "decoded": np.zeros(SHAPE, np.float32),
    }
    if spec.asymmetric:
        found["zero_point"] = np.zeros(shape, code_type)
    for place, rows, columns in places:
        part = weight[rows, columns]
        scale, zero, codes, decoded = solve_group(part.ravel().tolist(), spec, scale_type)
        found["scale"][place] = scale
        found["codes"][rows, columns] = np.reshape(codes, part.shape)
        found["decoded"][rows, columns] = np.reshape(decoded, part.shape)
        if zero is not None:
            found["zero_point"][place] = zero
    return found


# ------------------------------------------------------------------------------------------------------- the cases


def normals() -> np.ndarray:
    return np.random.default_rng(0).normal(scale=0.02, size=SHAPE).astype(np.float32)


def tie_levels(spec: Spec) -> np.ndarray:
    """Return what codes stand for in units of the scale when the range reaches as far below 0 as above."""
    levels = np.array(parse_scheme(spec.text).format.levels)
    return levels if spec.signed or not spec.asymmetric else levels - 2 ** (spec.bits - 1)


def ties(spec: Spec) -> np.ndarray:
    """Scale 1 in every group, and every other number halfway between two levels."""
    levels = tie_levels(spec)
    reach = levels[-1] if levels[0] == 0 else (levels[-1] - levels[0]) / 2
    weight = np.empty(SHAPE, np.float32)
    weight[:, 0::4], weight[:, 2::4] = reach, -reach
    weight[:, 1::2] = np.resize((levels[1:] + levels[:-1]) / 2, (SHAPE[0], SHAPE[1] // 2))
    return weight


def maxima() -> np.ndarray:
    largest = np.array([[65504.0], [2.0**120], [1.0], [2.0**-100]], np.float32)
    return np.where(normals() < 0, -largest, largest)


def subnormals() -> np.ndarray:
    weight = normals()
    weight[0] *= np.float32(2.0**-125)
    weight[1, ::2] *= np.float32(2.0**-125)
    weight[2] *= np.float32(2.0**-116)  # on both sides of 2^-126
    return weight


def one_sided() -> np.ndarray:
    """Return rows on one side of 0; a scale rounded down then puts the zero point beyond the end."""
    return np.abs(normals()) * np.array([[1], [-1], [1], [-1]], np.float32)


def zero_groups() -> np.ndarray:
    weight = normals()
    weight[0], weight[1, 16:32], weight[2, 64:] = 0, 0, 0
    return weight


#: Case: the weight, and the type its scales are stored in.
CASES = {
    "normals": (lambda spec: normals(), None),
    "normals, float16 scales": (lambda spec: normals(), "float16"),
    "normals, bfloat16 scales": (lambda spec: normals(), "bfloat16"),
    "ties": (ties, None),
    "maxima": (lambda spec: maxima(), "float16"),
    "subnormals": (lambda spec: subnormals(), None),
    "bfloat16-born": (lambda spec: normals().astype(ml_dtypes.bfloat16).astype(np.float32), "bfloat16"),
    "one-sided": (lambda spec: one_sided(), "bfloat16"),
    "zero groups": (lambda spec: zero_groups(), "float16"),
}


# ------------------------------------------------------------------------------------------------------- the claims


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.text)
def test_every_framework_equals_the_scalar_oracle(spec, xp):
    scheme = parse_scheme(spec.text)
    for case, (make_weight, scale_type) in CASES.items():
        quantized = quantize(xp.from_numpy(make_weight(spec)), scheme.stored_as(scale_type) if scale_type else scheme)
        found = {"codes": quantized.codes, "scale": quantized.scale, "decoded": quantized.dequantize()}
        if quantized.zero_point is not None:
            found["zero_point"] = quantized.zero_point
        expected = oracle(spec, case)
        assert found.keys() == expected.keys(), case
        for part, values in expected.items():
            got = xp.to_numpy(found[part])
            assert got.dtype == values.dtype, (case, part)
            np.testing.assert_array_equal(got, values, err_msg=f"{case}: {part}", strict=True)


@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: spec.text)
def test_the_tie_case_holds_ties_in_every_group(spec):
    # A guard for the test above: rounding halves away from zero would fail it.
    found = oracle(spec, "ties")
    assert (found["scale"] == 1).all()
    distance = np.sort(np.abs(ties(spec)[:, 1::2, None].astype(np.float64) - tie_levels(spec)), axis=-1)
    assert (distance[..., 0] == distance[..., 1]).all()
