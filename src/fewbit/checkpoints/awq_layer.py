"""One weight in AWQ's GEMM layout: W[o, i] = scales[i // g, o] (q[i, o] - z[i // g, o]), 4 bits, there and back.

Nibble k of word c is column 8c + (0, 2, 4, 6, 1, 3, 5, 7)[k], in qweight and in qzeros. Source: AutoAWQ,
`WQLinear_GEMM`.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.checkpoints.finite_weights import require_finite_weights
from fewbit.checkpoints.linear_weights import SCALES
from fewbit.checkpoints.qweight import Arrays, require_finite, require_parts, stored_scales
from fewbit.checkpoints.words import from_words, to_words
from fewbit.errors import CheckpointError
from fewbit.formats.integer import Int
from fewbit.interfaces import StoredTensor
from fewbit.numerics.namespace import to_numpy
from fewbit.qtensor import QTensor, scale_shape
from fewbit.schemes.scheme import Scheme

SUFFIXES = ("qweight", "qzeros", "scales")
BITS = 4
#: A word of zero points that all are in the middle.
MIDDLE = 0x88888888
_COLUMNS = np.asarray((0, 2, 4, 6, 1, 3, 5, 7))
_NIBBLES = np.argsort(_COLUMNS)


def width_problem(shape: tuple[int, int]) -> str | None:
    """Return that a weight of `shape` (out, in) does not fill whole words, or `None`."""
    return f"out_features {shape[0]} is not a multiple of 8, which fill AWQ's words; keep it" if shape[0] % 8 else None


def stored_parts(name: str, shape: tuple[int, int], scheme: Scheme) -> tuple[StoredTensor, ...]:
    """Return what stands in the file for the weight of `shape` (out, in) of layer `name`."""
    (out, width), groups = shape, scale_shape(shape, scheme)[1]
    return (
        StoredTensor(f"{name}.qweight", "int32", (width, out // 8)),
        StoredTensor(f"{name}.qzeros", "int32", (groups, out // 8)),
        StoredTensor(f"{name}.scales", SCALES, (groups, out)),
    )


def encoded(name: str, qtensor: QTensor) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of one weight by their suffix; a symmetric one has its zero points in the middle."""
    number, scale = qtensor.scheme.format, to_numpy(qtensor.scale)
    zero = np.zeros(scale.shape, np.int8) if qtensor.zero_point is None else to_numpy(qtensor.zero_point)
    return {
        "qweight": _interleaved(number.to_unsigned(to_numpy(qtensor.codes)).T),
        "qzeros": _interleaved(number.to_unsigned(zero).T),
        "scales": np.ascontiguousarray(stored_scales(name, scale).T),
    }


def decoded(name: str, arrays: Arrays, scheme: Scheme) -> QTensor:
    """Undo `encoded`.

    Raises:
        CheckpointError: shapes or scales that no weight of this scheme has.

    """
    try:
        shape = _weight_shape(arrays["qweight"])
        require_parts(arrays, stored_parts("", shape, scheme), shape, scheme)
        scale = np.ascontiguousarray(arrays["scales"].astype(np.float32).T)
        require_finite(scale)
        qtensor = _assembled(arrays, scale, scheme)
        require_finite_weights(qtensor)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    return qtensor


def _assembled(arrays: Arrays, scale: np.ndarray[Any, Any], scheme: Scheme) -> QTensor:
    number = scheme.format
    assert isinstance(number, Int)
    codes, zero = (number.from_unsigned(_columns(arrays[own]).T) for own in ("qweight", "qzeros"))
    return QTensor(
        codes=np.ascontiguousarray(codes),
        scale=scale,
        zero_point=None if scheme.symmetric else np.ascontiguousarray(zero),
        scheme=scheme,
    )


def _interleaved(patterns: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return unsigned codes (rows, out) as int32 (rows, out / 8), columns in AWQ's order."""
    rows, out = patterns.shape
    ordered = patterns.reshape(rows, out // 8, 8)[:, :, _COLUMNS]
    return to_words(np.ascontiguousarray(ordered).reshape(rows, out), BITS)


def _columns(words: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Undo `_interleaved`."""
    rows, count = words.shape
    return from_words(words, BITS).reshape(rows, count, 8)[:, :, _NIBBLES].reshape(rows, count * 8)


def _weight_shape(qweight: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Return (out, in) as the packed codes have it."""
    if qweight.ndim != 2 or qweight.dtype != np.int32 or not qweight.size:
        raise CheckpointError(f"qweight is {qweight.dtype}{list(qweight.shape)}, which is no matrix of int32")
    return qweight.shape[1] * 8, qweight.shape[0]
