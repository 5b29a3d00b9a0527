"""Weights whose scales are codes too, as compressed-tensors stores them: NVFP4 and the microscaling formats.

Codes are dense little-endian n-bit bytes, of 8 bits floats; E8M0 scales are uint8, those of NVFP4 e4m3 under
`weight_global_scale`, the reciprocal of the float32 above them. Source: compressed-tensors 0.20, its compressors.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fewbit.checkpoints.safetensors_file import numpy_type
from fewbit.errors import CheckpointError
from fewbit.formats.minifloat import E4M3
from fewbit.interfaces import StoredTensor
from fewbit.numerics.namespace import SMALLEST_NORMAL, to_numpy
from fewbit.numerics.packing import pack, packed_length, unpack
from fewbit.qtensor import QTensor, scale_shape
from fewbit.schemes.block_formats import MXFP4, MXFP6, MXFP8, NVFP4
from fewbit.schemes.granularity import PerGroup
from fewbit.schemes.scheme import Scheme

#: The scheme of each layout, but for how its ranges are chosen.
BLOCKS = {
    "nvfp4-pack-quantized": NVFP4,
    "mxfp4-pack-quantized": MXFP4,
    "mxfp6-pack-quantized": MXFP6,  # from compressed-tensors 0.20 on
    "mxfp8-quantized": MXFP8,
}
#: The reciprocal of the scale of NVFP4's scales.
GLOBAL_SCALE = "weight_global_scale"
_LARGEST = float(np.finfo(np.float32).max)


def block_layout(scheme: Scheme) -> str | None:
    """Return the word of the layout for weights of `scheme`; `None`: it is not one of these."""
    return next((word for word, own in BLOCKS.items() if _kind(own) == _kind(scheme)), None)


def stored_blocks(name: str, shape: tuple[int, int], scheme: Scheme) -> list[StoredTensor]:
    """Return what stands in the file for the weight of `shape` (out, in) of layer `name`."""
    (out, width), bits = shape, scheme.format.bits
    if bits == 8:
        codes = StoredTensor(f"{name}.weight", "float8_e4m3fn", shape)
    else:
        codes = StoredTensor(f"{name}.weight_packed", "uint8", (out, packed_length(width, bits)))
    kind = "float8_e4m3fn" if _is_global(scheme) else "uint8"
    parts = [codes, StoredTensor(f"{name}.weight_scale", kind, scale_shape(shape, scheme))]
    return [*parts, StoredTensor(f"{name}.{GLOBAL_SCALE}", "float32", (1,))] if _is_global(scheme) else parts


def encoded_blocks(name: str, qtensor: QTensor) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of one weight by their suffix, in the order of `stored_blocks`.

    Raises:
        CheckpointError: a global scale that no float32 is the reciprocal of.

    """
    scheme, codes, inner = qtensor.scheme, to_numpy(qtensor.codes), qtensor.scale
    assert isinstance(inner, QTensor)  # `block_layout` knows no others
    scales = to_numpy(inner.codes)
    if scheme.format.bits == 8:
        arrays = {"weight": codes.view(numpy_type("float8_e4m3fn"))}
    else:
        arrays = {"weight_packed": pack(codes, scheme.format.bits)}
    arrays["weight_scale"] = scales.view(numpy_type("float8_e4m3fn")) if _is_global(scheme) else scales
    if _is_global(scheme):
        arrays[GLOBAL_SCALE] = stored_reciprocal(name, np.float32(to_numpy(inner.scale_values()).reshape(())))
    return arrays


def decoded_blocks(arrays: Mapping[str, np.ndarray[Any, Any]], scheme: Scheme) -> QTensor:
    """Undo `encoded_blocks`; raises `CheckpointError` for what no weight under `scheme` has."""
    shape = _require_shapes(arrays, scheme)
    if scheme.format.bits == 8:
        codes = np.ascontiguousarray(arrays["weight"]).view(np.uint8)
    else:
        codes = np.asarray(unpack(np.ascontiguousarray(arrays["weight_packed"]), scheme.format.bits, shape[1]))
    scales = np.ascontiguousarray(arrays["weight_scale"]).view(np.uint8)
    _require_values(codes, scales, scheme)
    inner = scheme.scale_scheme
    assert inner is not None
    scale = (
        read_reciprocal(arrays[GLOBAL_SCALE], f"its {GLOBAL_SCALE}")
        if _is_global(scheme)
        else np.ones((1, 1), np.float32)
    )
    return QTensor(
        codes=codes,
        scale=QTensor(codes=scales, scale=scale, zero_point=None, scheme=inner),
        zero_point=None,
        scheme=scheme,
    )


def _kind(scheme: Scheme) -> tuple[Any, ...] | None:
    """Return what a layout fixes of a scheme, `None` without scales that are codes."""
    inner = scheme.scale_scheme
    if inner is None:
        return None
    return scheme.format, scheme.granularity, inner.format.name, inner.granularity, inner.scale_scheme


def _is_global(scheme: Scheme) -> bool:
    return scheme.scale_scheme is not None and scheme.scale_scheme.format == E4M3


def _group(scheme: Scheme) -> int:
    assert isinstance(scheme.granularity, PerGroup)  # that of all layouts
    return scheme.granularity.size


def stored_reciprocal(name: str, scale: np.float32) -> np.ndarray[Any, Any]:
    """Return the float32 whose reciprocal is `scale`, (1,); raise `CheckpointError` where there is none."""
    nearest = np.float32(1.0) / scale
    for candidate in (nearest, np.nextafter(nearest, np.float32(0.0)), np.nextafter(nearest, np.float32(_LARGEST))):
        if np.isfinite(candidate) and candidate > 0.0 and np.float32(1.0) / candidate == scale:
            return np.asarray([candidate], np.float32)
    raise CheckpointError(
        f"{name}: its global scale {scale:.9g} is the reciprocal of no float32, which is what the file holds; "
        "quantize it again with this version, whose global scales are powers of two"
    )


def read_reciprocal(stored: np.ndarray[Any, Any], what: str) -> np.ndarray[Any, Any]:
    """Return the scale of scales, (1, 1), for its reciprocal as it is stored; `what` names that in errors."""
    number = stored.astype(np.float32).reshape(1, 1)
    usable = np.isfinite(number) & (number >= SMALLEST_NORMAL)
    scale = np.float32(1.0) / np.where(usable, number, np.float32(1.0))
    if not usable.all() or scale[0, 0] < SMALLEST_NORMAL:
        raise CheckpointError(f"{what} is {float(number[0, 0]):.3g}, which has no reciprocal as a float32")
    return scale


def _require_shapes(arrays: Mapping[str, np.ndarray[Any, Any]], scheme: Scheme) -> tuple[int, int]:
    """Return the shape of the weight; raise unless every tensor has the shape and type that the writer gives it."""
    bits, suffix = scheme.format.bits, "weight" if scheme.format.bits == 8 else "weight_packed"
    sizes = arrays[suffix].shape
    if len(sizes) != 2 or min(sizes) < 1 or sizes[1] * 8 % bits or sizes[1] * 8 // bits % _group(scheme):
        raise CheckpointError(f"{suffix} has shape {list(sizes)}, which is that of no weight under {scheme}")
    shape = sizes[0], sizes[1] * 8 // bits
    needed = {part.name.removeprefix("."): part for part in stored_blocks("", shape, scheme)}
    for suffix in sorted(arrays.keys() - needed.keys()):
        raise CheckpointError(f"it holds {suffix}, which has no meaning under {scheme}")
    for suffix, part in needed.items():
        found = arrays[suffix]
        shapes = [part.shape, ()] if suffix == GLOBAL_SCALE else [part.shape]
        if found.dtype != numpy_type(part.dtype) or found.shape not in shapes:
            raise CheckpointError(
                f"{suffix} is {found.dtype}{list(found.shape)}; "
                f"a weight of {list(shape)} under {scheme} has {part.dtype}{list(part.shape)}"
            )
    return shape


def _require_values(codes: np.ndarray[Any, Any], scales: np.ndarray[Any, Any], scheme: Scheme) -> None:
    """Raise for codes of weights and scales that stand for no number, or for none that a scale can be."""
    bad = int((scales >= 0x7F).sum() if _is_global(scheme) else ((scales == 0) | (scales == 0xFF)).sum())
    if bad:
        what = "NaN or negative" if _is_global(scheme) else "NaN, or 2^-127, which is no normal float32"
        raise CheckpointError(f"{bad} of {scales.size} scales are {what}; the file is damaged")
    bad = int(((codes & 0x7F) == 0x7F).sum()) if scheme.format == E4M3 else 0
    if bad:
        raise CheckpointError(f"{bad} of {codes.size} weights are NaN; the file is damaged")
