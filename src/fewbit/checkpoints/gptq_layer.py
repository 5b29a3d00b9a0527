"""One weight as GPTQ files hold it: W[o, i] = scales[g, o] (q[i, o] - z[g, o]) with g = g_idx[i], there and back.

qweight packs q down the inputs, qzeros packs z along the outputs: z itself in gptq_v2, z - 1 in gptq. Source:
GPTQModel 7.7, `nn_modules/qlinear`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import gcd
from typing import Any

import numpy as np

from fewbit.checkpoints.finite_weights import require_finite_weights
from fewbit.checkpoints.linear_weights import SCALES
from fewbit.checkpoints.qweight import Arrays, require_finite, require_parts, stored_scales
from fewbit.checkpoints.words import codes_of_whole_words, from_words, to_words
from fewbit.errors import CheckpointError
from fewbit.formats.integer import Int
from fewbit.interfaces import StoredTensor
from fewbit.numerics.namespace import to_numpy
from fewbit.qtensor import QTensor, scale_shape
from fewbit.schemes.granularity import PerGroup
from fewbit.schemes.scheme import Scheme

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")


@dataclass(frozen=True, slots=True)
class Form:
    """How a layer stands in a file."""

    #: Its groups are those of the file, also where `g_idx` scatters their columns.
    scheme: Scheme
    #: Whether zero points are stored as they are; else each is one less.
    whole_zeros: bool
    #: Whether columns of a group may lie anywhere, as act-order leaves them.
    scattered: bool = False


def width_problem(shape: tuple[int, int], scheme: Scheme) -> str | None:
    """Return that a weight of `shape` (out, in) does not fill whole words, or `None`."""
    unit = codes_of_whole_words(scheme.format.bits)
    for size, axis in zip(shape, ("out", "in"), strict=True):
        if size % unit:
            return f"{axis}_features {size} is not a multiple of {unit}, which fill GPTQ's words; keep it"
    return None


def stored_parts(name: str, shape: tuple[int, int], scheme: Scheme) -> tuple[StoredTensor, ...]:
    """Return what stands in the file for the weight of `shape` (out, in) of layer `name`."""
    (out, width), bits = shape, scheme.format.bits
    groups = scale_shape(shape, scheme)[1]
    return (
        StoredTensor(f"{name}.qweight", "int32", (width * bits // 32, out)),
        StoredTensor(f"{name}.qzeros", "int32", (groups, out * bits // 32)),
        StoredTensor(f"{name}.scales", SCALES, (groups, out)),
        StoredTensor(f"{name}.g_idx", "int32", (width,)),
    )


def encoded(name: str, qtensor: QTensor) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of one weight by their suffix, with zero points as they are."""
    scheme, scale = qtensor.scheme, to_numpy(qtensor.scale)
    assert isinstance(scheme.format, Int)
    bits, width = scheme.format.bits, qtensor.shape[1]
    zero = np.zeros(scale.shape, np.int8) if qtensor.zero_point is None else to_numpy(qtensor.zero_point)
    return {
        "qweight": np.ascontiguousarray(to_words(scheme.format.to_unsigned(to_numpy(qtensor.codes)), bits).T),
        "qzeros": to_words(np.ascontiguousarray(scheme.format.to_unsigned(zero).T), bits),
        "scales": np.ascontiguousarray(stored_scales(name, scale).T),
        "g_idx": _neighbours(width, scale.shape[1]),
    }


def holds_zero(words: np.ndarray[Any, Any], bits: int) -> bool:
    """Whether one of the zero points in `words` (groups, out * bits / 32) is 0, which gptq cannot store safely."""
    return bool((from_words(words, bits) == 0).any())


def lessened(words: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Return the same zero points, none of them 0, as gptq stores them: each one less."""
    return to_words(from_words(words, bits) - 1, bits)


def decoded(name: str, arrays: Arrays, form: Form) -> QTensor:
    """Undo `encoded`; scattered groups become the longest runs of neighbours that share one.

    Raises:
        CheckpointError: shapes, scales, zero points or an index that no weight in this form has.

    """
    try:
        qtensor = _decoded(arrays, form)
        require_finite_weights(qtensor)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    return qtensor


def run_length(index: np.ndarray[Any, Any]) -> int:
    """Return the largest size at whose multiples alone the group of the columns changes.

    >>> run_length(np.asarray([1, 1, 0, 0, 0, 0, 2, 2]))
    2
    """
    return gcd(len(index), *(int(place) + 1 for place in np.flatnonzero(np.diff(index))))


def _decoded(arrays: Arrays, form: Form) -> QTensor:
    scheme = form.scheme
    assert isinstance(scheme.format, Int)
    bits = scheme.format.bits
    shape = _weight_shape(arrays["qweight"], bits)
    _require_shapes(arrays, shape, scheme)
    scale = np.ascontiguousarray(arrays["scales"].astype(np.float32).T)
    require_finite(scale)
    zero = scheme.format.from_unsigned(_zero_points(arrays["qzeros"], form)).T
    if scheme.symmetric and zero.any():
        raise CheckpointError(
            f"{int((zero != 0).sum())} of {zero.size} zero points are not {1 << (bits - 1)} though quantization_config "
            "says sym; readers disagree on which counts: set sym to false"
        )
    index = arrays.get("g_idx")
    neighbours = _neighbours(shape[1], scale.shape[1])
    if index is not None and not np.array_equal(index, neighbours):
        _require_index(index, scale.shape[1], form)
        size = run_length(index)
        chosen = index[::size]
        scale, zero = scale[:, chosen], zero[:, chosen]
        scheme = refined(scheme, size)
    codes = from_words(np.ascontiguousarray(arrays["qweight"].T), bits)
    return QTensor(
        codes=scheme.format.from_unsigned(codes),
        scale=np.ascontiguousarray(scale),
        zero_point=None if scheme.symmetric else np.ascontiguousarray(zero),
        scheme=scheme,
    )


def refined(scheme: Scheme, size: int) -> Scheme:
    """Return `scheme` with groups of `size` neighbours."""
    return replace(scheme, granularity=PerGroup(size))


def _zero_points(words: np.ndarray[Any, Any], form: Form) -> np.ndarray[Any, Any]:
    """Return the zero points (groups, out) as unsigned codes."""
    bits = form.scheme.format.bits
    stored = from_words(words, bits)
    if form.whole_zeros:
        return stored
    most = (1 << bits) - 1
    bad = int((stored == most).sum())
    if bad:
        raise CheckpointError(
            f"{bad} of {stored.size} zero points are stored as {most}, in the checkpoint_format gptq 0 or {most + 1}: "
            "readers disagree; have the model written as gptq_v2, or its zero points kept above 0"
        )
    return stored + 1


def _weight_shape(qweight: np.ndarray[Any, Any], bits: int) -> tuple[int, int]:
    """Return (out, in) as the packed codes have it."""
    if qweight.ndim != 2 or qweight.dtype != np.int32 or not qweight.size or qweight.shape[0] * 32 % bits:
        raise CheckpointError(
            f"qweight is {qweight.dtype}{list(qweight.shape)}, no matrix of whole codes of {bits} bits in int32"
        )
    return qweight.shape[1], qweight.shape[0] * 32 // bits


def _require_shapes(arrays: Arrays, shape: tuple[int, int], scheme: Scheme) -> None:
    """Raise unless every tensor has the shape and type that belong to the weight."""
    if text := width_problem(shape, scheme):
        raise CheckpointError(f"{text.partition(',')[0]}, which its tensors cannot have")
    require_parts(arrays, stored_parts("", shape, scheme), shape, scheme)


def _require_index(index: np.ndarray[Any, Any], groups: int, form: Form) -> None:
    """Raise unless `index` gives each column one of the groups, and may do so in any order."""
    if not form.scattered:
        raise CheckpointError(
            "g_idx does not count the groups in the order of the columns though quantization_config says desc_act is "
            "false; readers disagree on which counts: set desc_act to true"
        )
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= groups:
        raise CheckpointError(f"g_idx reaches from {low} to {high}; there are {groups} groups; the file is damaged")


def _neighbours(width: int, groups: int) -> np.ndarray[Any, Any]:
    return np.arange(width, dtype=np.int32) // np.int32(width // groups)
