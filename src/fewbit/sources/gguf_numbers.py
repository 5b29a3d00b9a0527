"""The numbers of one tensor of a GGUF file, decoded by the gguf package in pieces that fit a cache.

The package takes sixteen rows at a time, thousands of calls for an embedding; blocks do not know where rows end.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewbit.checkpoints.gguf_header import GgufHeader, GgufTensor
from fewbit.checkpoints.gguf_parts import place_of
from fewbit.errors import SourceError

#: A multiple of the numbers of every type's block.
_AT_ONCE = 1 << 17


def read_numbers(path: Path, header: GgufHeader, tensor: GgufTensor) -> Any:
    """Return the numbers of `tensor`: a new float32 array of its shape.

    Raises:
        SourceError: the file ends before the tensor does, unlike when its header was read.

    """
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    form: Any = GGMLQuantizationType[tensor.kind]
    block, block_bytes = GGML_QUANT_SIZES[form]
    file, start = place_of(path, header, tensor)
    raw = np.fromfile(file, np.uint8, tensor.nbytes, offset=start)
    if raw.size < tensor.nbytes:
        raise SourceError(f"{file} ended while {tensor.name} was read; is it being written?")
    numbers = np.empty(tensor.nbytes // block_bytes * block, np.float32)
    step = _AT_ONCE // block
    # Scales of NaN and infinity are found, with the name of the layer, when it is quantized.
    with np.errstate(over="ignore", invalid="ignore"):
        for first in range(0, numbers.size // block, step):
            piece = raw[first * block_bytes : (first + step) * block_bytes]
            numbers[first * block : (first + step) * block] = dequantize(piece, form)
    return numbers.reshape(tensor.shape)
