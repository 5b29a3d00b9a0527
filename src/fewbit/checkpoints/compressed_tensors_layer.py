"""One quantized weight as compressed-tensors stores it: which tensors, of which shape, and the way there and back.

Packed integers are code + 2^(b-1) in dense little-endian int32 words, zero points packed along the output axis; else
a code is a byte, as of e4m3. Source: compressed-tensors 0.20, its compressors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fewbit.checkpoints.compressed_tensors_blocks import GLOBAL_SCALE, decoded_blocks, encoded_blocks, stored_blocks
from fewbit.checkpoints.compressed_tensors_form import Form
from fewbit.checkpoints.finite_weights import require_finite_weights
from fewbit.checkpoints.safetensors_file import numpy_type
from fewbit.checkpoints.words import from_words, to_words, word_count
from fewbit.errors import CheckpointError
from fewbit.formats.integer import Int
from fewbit.interfaces import StoredTensor
from fewbit.numerics.namespace import to_numpy
from fewbit.qtensor import QTensor, scale_shape
from fewbit.schemes.granularity import PerTensor
from fewbit.schemes.scheme import ScaleType, Scheme

SUFFIXES = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", GLOBAL_SCALE, "weight")
Arrays = Mapping[str, np.ndarray[Any, Any]]


def stored_parts(name: str, shape: tuple[int, int], form: Form, storage_type: ScaleType) -> list[StoredTensor]:
    """Return what stands in the file for the weight of `shape` (out, in) of layer `name`."""
    (out, width), scheme = shape, form.scheme
    if form.blocks:
        return stored_blocks(name, shape, scheme)
    scale = StoredTensor(f"{name}.weight_scale", storage_type, _scale_shape(shape, scheme))
    if not form.packed:
        kind = "int8" if isinstance(scheme.format, Int) else "float8_e4m3fn"
        parts = [StoredTensor(f"{name}.weight", kind, shape), scale]
    else:
        parts = [
            StoredTensor(f"{name}.weight_packed", "int32", (out, word_count(width, scheme.format.bits))),
            scale,
            StoredTensor(f"{name}.weight_shape", "int64", (2,)),
        ]
    return parts if scheme.symmetric else [*parts, _zero_point_as_stored(name, shape, form)]


def encoded(name: str, qtensor: QTensor, form: Form, storage_type: ScaleType) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of one weight by their suffix, in the order of `stored_parts`."""
    if form.blocks:
        return encoded_blocks(name, qtensor)
    scheme = qtensor.scheme
    scale = to_numpy(qtensor.scale)
    with np.errstate(over="ignore"):
        stored = scale.astype(numpy_type(storage_type))
    # Those of quantize are normal numbers of the type; those of another file may be 0, negative or subnormal.
    if not np.array_equal(stored.astype(np.float32), scale):
        raise CheckpointError(
            f"{name}: {storage_type} does not hold the scales exactly (least {np.abs(scale).min():.3g}); "
            f"quantize with dtype='{'bfloat16' if storage_type == 'float16' else 'float32'}' (--dtype)"
        )
    scale = stored.reshape(_scale_shape(qtensor.shape, scheme))
    codes = to_numpy(qtensor.codes)
    if not form.packed:
        kind = "int8" if isinstance(scheme.format, Int) else "float8_e4m3fn"
        arrays = {"weight": codes.view(numpy_type(kind)), "weight_scale": scale}
        if qtensor.zero_point is not None:
            arrays["weight_zero_point"] = to_numpy(qtensor.zero_point).reshape(scale.shape)
        return arrays
    assert isinstance(scheme.format, Int)
    patterns = scheme.format.to_unsigned(codes)
    arrays = {
        "weight_packed": to_words(patterns, scheme.format.bits),
        "weight_scale": scale,
        "weight_shape": np.asarray(qtensor.shape, dtype=np.int64),
    }
    if qtensor.zero_point is not None:
        zero = to_numpy(qtensor.zero_point)
        if isinstance(scheme.granularity, PerTensor):
            arrays["weight_zero_point"] = zero.reshape(1)
        else:
            packed = to_words(scheme.format.to_unsigned(zero).T, scheme.format.bits)
            arrays["weight_zero_point"] = np.ascontiguousarray(packed.T)
    return arrays


def decoded(name: str, arrays: Arrays, form: Form) -> QTensor:
    """Undo `encoded`.

    Raises:
        CheckpointError: shapes, scales, codes or zero points that no weight in this form has.

    """
    try:
        qtensor = decoded_blocks(arrays, form.scheme) if form.blocks else _decoded_plain(arrays, form)
        require_finite_weights(qtensor)
    except CheckpointError as error:
        raise CheckpointError(f"{name}: {error}") from error
    return qtensor


def _decoded_plain(arrays: Arrays, form: Form) -> QTensor:
    shape = _weight_shape(arrays, form)
    _require_shapes(arrays, shape, form)
    qtensor = _assembled(arrays, shape, form)
    _require_values(qtensor)
    return qtensor


def _weight_shape(arrays: Arrays, form: Form) -> tuple[int, int]:
    """Return the shape of the weight as the file claims it."""
    if form.packed:
        claimed = arrays["weight_shape"]
        if claimed.dtype not in (np.int64, np.int32) or claimed.shape != (2,) or claimed.min() < 1:
            raise CheckpointError(f"weight_shape is {claimed.tolist()!r:.80}, which is not the shape of a matrix")
        sizes = claimed.tolist()
    else:
        sizes = list(arrays["weight"].shape)
        if len(sizes) != 2 or min(sizes) < 1:
            raise CheckpointError(f"weight has shape {sizes}, which is not that of a matrix")
    return int(sizes[0]), int(sizes[1])


def _require_shapes(arrays: Arrays, shape: tuple[int, int], form: Form) -> None:
    """Raise unless every tensor has the shape and type that the writer would give it."""
    scheme = form.scheme
    assert scheme.scale_type is not None
    needed = {part.name.removeprefix("."): part for part in stored_parts("", shape, form, scheme.scale_type)}
    for suffix in sorted(arrays.keys() - needed.keys()):
        raise CheckpointError(f"it holds {suffix}, which has no meaning under {scheme}")
    for suffix, part in needed.items():
        found = arrays[suffix]
        forms = [part]
        if suffix == "weight_shape":
            forms.append(StoredTensor("", "int32", part.shape))
        if suffix == "weight_zero_point":  # other writers leave it unpacked
            forms.append(StoredTensor("", "int8", _scale_shape(shape, scheme)))
        if not any(found.dtype == numpy_type(own.dtype) and alike(found.shape, own.shape) for own in forms):
            raise CheckpointError(
                f"{suffix} is {found.dtype}{list(found.shape)}; "
                f"a weight of {list(shape)} under {scheme} has {part.dtype}{list(part.shape)}"
            )


def alike(found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether two shapes are equal, or differ by axes of one number that were dropped."""
    return found in (wanted, tuple(size for size in wanted if size != 1))


def _assembled(arrays: Arrays, shape: tuple[int, int], form: Form) -> QTensor:
    scheme, number_format, (out, width) = form.scheme, form.scheme.format, shape
    boxes = scale_shape(shape, scheme)
    scale = arrays["weight_scale"].astype(np.float32).reshape(boxes)
    if not isinstance(number_format, Int):
        codes = np.ascontiguousarray(arrays["weight"]).view(np.uint8)
        return QTensor(codes=codes, scale=scale, zero_point=None, scheme=scheme)
    if form.packed:
        words = arrays["weight_packed"].reshape(out, -1)
        codes = number_format.from_unsigned(from_words(words, number_format.bits, width))
    else:
        codes = np.ascontiguousarray(arrays["weight"])
    zero = arrays.get("weight_zero_point")
    if zero is not None and zero.dtype == np.int32:
        zero = np.ascontiguousarray(zero.reshape(-1, boxes[1]).T)
        zero = number_format.from_unsigned(from_words(zero, number_format.bits, out)).T
    return QTensor(
        codes=codes,
        scale=scale,
        zero_point=None if zero is None else np.ascontiguousarray(zero).reshape(boxes),
        scheme=scheme,
    )


def _require_values(qtensor: QTensor) -> None:
    """Raise for scales, zero points and codes that stand for no number."""
    number_format = qtensor.scheme.format
    assert not isinstance(qtensor.scale, QTensor)
    # A negative scale mirrors the levels of integers; blocks of GGUF have such.
    negative = (qtensor.scale < 0) & (not isinstance(number_format, Int))
    bad = int((~np.isfinite(qtensor.scale) | negative).sum())
    if bad:
        what = "NaN or infinite" if isinstance(number_format, Int) else "NaN, infinite or negative"
        raise CheckpointError(f"{bad} of {qtensor.scale.size} scales are {what}; the file is damaged")
    if isinstance(number_format, Int):
        for what, values in {"zero points": qtensor.zero_point, "codes": qtensor.codes}.items():
            if values is not None:
                require_within(values, number_format, f"its {what}")
    if not isinstance(number_format, Int):
        bad = int(((qtensor.codes & 0x7F) == 0x7F).sum())
        if bad:
            raise CheckpointError(f"{bad} of {qtensor.codes.size} weights are NaN; the file is damaged")


def require_within(values: np.ndarray[Any, Any], number_format: Int, what: str) -> None:
    """Raise `CheckpointError` unless all `values` are codes of `number_format`."""
    low, high = int(values.min()), int(values.max())
    if low < number_format.qmin or high > number_format.qmax:
        raise CheckpointError(
            f"{what} reach from {low} to {high}; those of {number_format.name} lie "
            f"from {number_format.qmin} to {number_format.qmax}; the file is damaged"
        )


def _scale_shape(shape: tuple[int, ...], scheme: Scheme) -> tuple[int, ...]:
    return (1,) if isinstance(scheme.granularity, PerTensor) else scale_shape(shape, scheme)


def _zero_point_as_stored(name: str, shape: tuple[int, int], form: Form) -> StoredTensor:
    scheme = form.scheme
    if isinstance(scheme.granularity, PerTensor) or not form.packed:
        return StoredTensor(f"{name}.weight_zero_point", "int8", _scale_shape(shape, scheme))
    groups = scale_shape(shape, scheme)[1]
    return StoredTensor(f"{name}.weight_zero_point", "int32", (word_count(shape[0], scheme.format.bits), groups))
