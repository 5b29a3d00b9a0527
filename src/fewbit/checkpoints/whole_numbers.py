"""Blocks of GGUF in whole numbers: d c q + m as (q - z) s with s = d c, where m = -z s for a whole z; levels as codes.

A scale in units of another is one float32 then, exactly: 11 bits times 8. Source: the layouts, `schemes/gguf.py`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.errors import CheckpointError
from fewbit.formats.codebook import Codebook
from fewbit.formats.integer import Int
from fewbit.numerics.namespace import to_numpy
from fewbit.qtensor import QTensor
from fewbit.schemes.gguf import as_integers
from fewbit.schemes.scheme import Scheme

Numbers = np.ndarray[Any, Any]


def in_whole_numbers(qtensor: QTensor) -> QTensor:
    """Return the values of `qtensor` (NumPy arrays) as integers under float scales, or `qtensor` if it is so already.

    Codes are int8 or uint8, zero points int32, which may lie beyond the codes.

    Raises:
        CheckpointError: a minimum that is no whole multiple of its scale.

    """
    scheme = as_integers(qtensor.scheme)
    if scheme == qtensor.scheme:
        return qtensor
    scale = np.asarray(to_numpy(qtensor.scale_values()), np.float32)
    codes, own = to_numpy(qtensor.codes), qtensor.scheme.format
    if isinstance(own, Codebook):
        codes = to_numpy(own.decode(codes)).astype(np.int8)
    if not qtensor.scheme.minimum:
        return QTensor(codes=codes, scale=scale, zero_point=None, scheme=scheme)
    assert isinstance(own, Int)  # of a scheme with a minimum
    zero = _zero_points(np.asarray(to_numpy(qtensor.minimum_values()), np.float32), scale, qtensor.scheme)
    counted = Scheme(
        format=Int(own.bits, signed=False), granularity=scheme.granularity, symmetric=False, scale_type="float32"
    )
    found = QTensor(codes=codes, scale=scale, zero_point=zero, scheme=counted)
    if not np.array_equal(_bits(found.dequantize()), _bits(qtensor.dequantize())):
        raise CheckpointError(f"sums of {qtensor.scheme} are rounded otherwise without its minimums")
    return found


def _zero_points(minimum: Numbers, scale: Numbers, scheme: Scheme) -> Numbers:
    """Return the int32 z with -z scale = minimum."""
    # Where a scale is 0 so must the minimum be, and any z will do.
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        ratio = np.where(scale == 0, np.float32(0.0), -minimum / scale)
        zero: Numbers = np.rint(np.clip(np.nan_to_num(ratio), -1024, 1024)).astype(np.int32)
    off = int((-zero.astype(np.float32) * scale != minimum).sum())
    if off:
        raise CheckpointError(f"{off} of {minimum.size} minimums of {scheme} are no whole multiples of their scales")
    return zero


def _bits(values: Any) -> Numbers:
    return np.ascontiguousarray(to_numpy(values)).view(np.uint32)
