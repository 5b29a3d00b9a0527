"""The bytes of GGUF's blocks: a float16 scale, then the codes of 32 numbers.

Q8_0: int8. Q4_0: code + 8 in nibbles, byte j holds number j (low) and j + 16 (high). Source: ggml-common.h.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from fewbit.errors import CheckpointError
from fewbit.numerics.namespace import to_numpy
from fewbit.qtensor import QTensor
from fewbit.schemes.gguf import scheme_of

#: Numbers and bytes of a block, by its name.
BLOCKS = {"Q8_0": (32, 34), "Q4_0": (32, 18)}
_Bytes = np.ndarray[Any, Any]


def pack(qtensor: QTensor, kind: str) -> _Bytes:
    """Return the blocks of `qtensor`, uint8 (rows, bytes per row)."""
    rows, width = qtensor.shape
    codes = to_numpy(qtensor.codes).reshape(rows, width // 32, 32)
    scales = to_numpy(qtensor.scale_values()).reshape(rows, width // 32, 1)
    half = scales.astype("<f2")
    if not np.array_equal(half.astype(np.float32), scales):
        raise CheckpointError(f"{kind} has float16 scales, which cannot hold {scales[half != scales][0]:.9g}")
    if kind == "Q8_0":
        packed = codes.astype(np.int8).view(np.uint8)
    else:
        nibbles = (codes.astype(np.int8) + 8).astype(np.uint8)
        packed = nibbles[..., :16] | (nibbles[..., 16:] << 4)
    return np.concatenate([half.view(np.uint8), packed], axis=-1).reshape(rows, -1)


def unpack(rows: _Bytes, kind: str) -> QTensor:
    """Return the tensor that blocks (rows, bytes per row) hold."""
    count, size = rows.shape[0], BLOCKS[kind][1]
    blocks = rows.reshape(count, -1, size)
    scale = np.ascontiguousarray(blocks[..., :2]).view("<f2")[..., 0].astype(np.float32)
    packed = np.ascontiguousarray(blocks[..., 2:])
    if kind == "Q8_0":
        codes = packed.view(np.int8)
    else:
        codes = np.concatenate([packed & 15, packed >> 4], axis=-1).astype(np.int8) - np.int8(8)
    return QTensor(codes=codes.reshape(count, -1), scale=scale, zero_point=None, scheme=scheme_of(kind))
