"""The bytes of GGUF's blocks, from QTensors and back: `unpack(pack(q, kind), kind) == q`.

A layout is a row of sections; blocks lie along the inputs. Source: ggml's `ggml-common.h`; the tests compare with the
decoders of PyPI `gguf`, number by number. # weight: (out, in)
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np

from fewbit.checkpoints.gguf.sections import Bytes, Half, Planes, Section, SixBits, put_all, take_all
from fewbit.errors import CheckpointError
from fewbit.numerics.namespace import to_numpy
from fewbit.qtensor import QTensor, scale_shape
from fewbit.schemes.gguf import kind_of, scheme_of
from fewbit.schemes.scheme import Scheme

_D, _DMIN, _NIBBLES, _FIFTH = Half("d"), Half("dmin"), Planes("codes", 32, 4, 32), Planes("codes", 32, 1, 8, 4)

#: Sections by type: `codes`, the float16 `d` and `dmin`, and `scales`, whose second half are minima if there are any.
LAYOUTS: dict[str, tuple[Section, ...]] = {
    "Q4_0": (_D, _NIBBLES),
    "Q4_1": (_D, _DMIN, _NIBBLES),
    "Q5_0": (_D, _FIFTH, _NIBBLES),
    "Q5_1": (_D, _DMIN, _FIFTH, _NIBBLES),
    "Q8_0": (_D, Bytes("codes", 32, signed=True)),
    "Q2_K": (Planes("scales", 32, 4, 32), Planes("codes", 256, 2, 128), _D, _DMIN),
    "Q3_K": (
        Planes("codes", 256, 1, 256, 2), Planes("codes", 256, 2, 128),
        Planes("scales", 16, 4, 16), Planes("scales", 16, 2, 16, 4), _D,
    ),
    "Q4_K": (_D, _DMIN, SixBits("scales"), Planes("codes", 256, 4, 64)),
    "Q5_K": (_D, _DMIN, SixBits("scales"), Planes("codes", 256, 1, 256, 4), Planes("codes", 256, 4, 64)),
    "Q6_K": (
        Planes("codes", 256, 4, 128), Planes("codes", 256, 2, 128, 4), Bytes("scales", 16, signed=True), _D,
    ),
    "IQ4_NL": (_D, _NIBBLES),
    "IQ4_XS": (_D, Planes("scales", 8, 2, 4, 4), Planes("scales", 8, 4, 2), Planes("codes", 256, 4, 32)),
    "MXFP4": (Bytes("scales", 1), _NIBBLES),
    "NVFP4": (Bytes("scales", 4), Planes("codes", 64, 4, 16)),
}  # fmt: skip

#: (numbers a block, bytes a block) by type.
BLOCKS = {
    kind: (max(own.count for own in sections if own.field == "codes"), sum(own.size for own in sections))
    for kind, sections in LAYOUTS.items()
}
#: The pattern of e4m3 that means NaN, and 0 in GGUF.
_NAN = np.uint8(0x7F)


def pack(qtensor: QTensor, kind: str) -> Any:
    """Return the uint8 (out, bytes a row) of a weight (out, in) in the GGUF type `kind`.

    Of NVFP4 the scale of the whole tensor is left out; see `tensor_scale`.

    Raises:
        CheckpointError: a scheme that is not that of the type, or scales that float16 does not hold.

    """
    scheme = qtensor.scheme
    if kind not in BLOCKS or kind_of(scheme) != kind:
        raise CheckpointError(f"a weight in '{scheme}' is not {kind} but {kind_of(scheme) or 'no GGUF type'}")
    (out, width), (numbers, size) = qtensor.shape, BLOCKS[kind]
    if width % numbers:
        raise CheckpointError(f"rows of {width} numbers are no whole {kind} blocks, which have {numbers}; pad them")
    parts = [part for part in (qtensor.scale, qtensor.minimum) if part is not None]
    nested = [part for part in parts if isinstance(part, QTensor)]
    fields = {"codes": [_patterns(qtensor)], "scales": [_patterns(part) for part in nested]}
    if kind == "MXFP4" and not (to_numpy(nested[0].scale) == 1.0).all():
        raise CheckpointError(f"MXFP4 has scales that are powers of two, not in units of {to_numpy(nested[0].scale)}")
    if not kind.endswith("FP4"):
        floats = [to_numpy(part.scale if isinstance(part, QTensor) else part) for part in parts]
        # What codes of minima count is subtracted.
        fields["d"], fields["dmin"] = floats[:1], [-own if nested else own for own in floats[1:]]
        _require_halves(floats, kind)
    blocks = out * width // numbers
    rows = {
        name: np.concatenate([own.reshape(blocks, -1) for own in arrays], axis=1)
        for name, arrays in fields.items()
        if arrays
    }
    return put_all(LAYOUTS[kind], rows).reshape(out, width // numbers * size)


def tensor_scale(qtensor: QTensor) -> float:
    """Return the float that GGUF keeps beside an NVFP4 weight, in a tensor of its own; 1 for other types."""
    inner = qtensor.scale
    if kind_of(qtensor.scheme) != "NVFP4" or not isinstance(inner, QTensor):
        return 1.0
    return float(to_numpy(inner.scale_values()).reshape(()))


def unpack(rows: Any, kind: str, tensor_scale: float = 1.0) -> QTensor:
    """Return the weight that the uint8 `rows` (out, bytes a row) hold in the GGUF type `kind`.

    `tensor_scale` is that of NVFP4, which GGUF keeps in a tensor of its own.

    Raises:
        CheckpointError: rows that are not of whole blocks, or scales that stand for no number.

    """
    scheme, (numbers, size) = scheme_of(kind), BLOCKS[kind]
    if rows.ndim != 2 or rows.shape[1] % size or not rows.size:
        raise CheckpointError(f"rows of shape {rows.shape} hold no whole {kind} blocks, which have {size} bytes")
    shape = len(rows), rows.shape[1] // size * numbers
    fields = take_all(LAYOUTS[kind], np.ascontiguousarray(rows).reshape(-1, size))
    floats = [fields[name].reshape(len(rows), -1) for name in ("d", "dmin") if name in fields]
    _require_finite([*floats, np.float32(tensor_scale)], kind)
    inner, scales = scheme.scale_scheme, scale_shape(shape, scheme)
    if kind == "MXFP4":
        fields["scales"] = _powers(fields)
    if kind == "NVFP4":
        if (fields["scales"] > _NAN).any():
            raise CheckpointError("an NVFP4 block has a negative scale, which the type has no number for")
        fields["scales"] = np.where(fields["scales"] == _NAN, np.uint8(0), fields["scales"])
    if kind.endswith("FP4"):
        floats = [np.full((1, 1), tensor_scale, np.float32)]
    if inner is None:
        parameters: list[Any] = floats
    else:
        halves = np.split(fields["scales"], len(floats), axis=1)
        units = [floats[0], *(-own for own in floats[1:])]
        parameters = [_stored(own.reshape(scales), unit, inner) for own, unit in zip(halves, units, strict=True)]
    found = _stored(fields["codes"].reshape(shape), parameters[0], scheme)
    return replace(found, minimum=parameters[1]) if scheme.minimum else found


def _stored(patterns: Any, scale: Any, scheme: Scheme) -> QTensor:
    codes = scheme.format.from_unsigned(np.ascontiguousarray(patterns))
    return QTensor(codes=codes, scale=scale, zero_point=None, scheme=scheme)


def _patterns(qtensor: QTensor) -> Any:
    return qtensor.scheme.format.to_unsigned(to_numpy(qtensor.codes))


def _powers(fields: dict[str, Any]) -> Any:
    """Return the codes of powers of two; a block of zeros may have 2^-127, which float32 holds as a subnormal only."""
    powers = fields["scales"]
    empty = ((fields["codes"] & 7) == 0).all(axis=1, keepdims=True)
    if (powers == 255).any() or ((powers == 0) & ~empty).any():
        raise CheckpointError("an MXFP4 block has the scale 2^-127 or NaN, which fewbit has no number for")
    return np.where(powers == 0, np.uint8(1), powers)


def _require_finite(scales: list[Any], kind: str) -> None:
    bad = sum(int((~np.isfinite(own)).sum()) for own in scales)
    if bad:
        raise CheckpointError(f"{bad} of its {kind} scales are NaN or infinite; the file is damaged")


def _require_halves(floats: list[Any], kind: str) -> None:
    for own in floats:
        off = own[own.astype(np.float16).astype(np.float32) != own]
        if off.size:
            raise CheckpointError(
                f"{kind} has float16 scales, which do not hold {off.flat[0]:g}; quantize with that type in view"
            )
