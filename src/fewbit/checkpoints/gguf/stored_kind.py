"""Which type of GGUF a tensor has in the file."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np

from fewbit.checkpoints.gguf.tensor_names import Place
from fewbit.errors import CheckpointError
from fewbit.formats.cast import Cast
from fewbit.schemes.gguf import kind_of
from fewbit.schemes.scheme import Scheme

#: Types of float numbers by their name in GGUF.
FLOATS: dict[str, np.dtype[Any]] = {
    "F32": np.dtype(np.float32),
    "F16": np.dtype(np.float16),
    "BF16": np.dtype(ml_dtypes.bfloat16),
}
_KINDS = {"float32": "F32", "float64": "F32", "float16": "F16", "bfloat16": "BF16"}


def weight_kind(scheme: Scheme) -> str:
    """Return the type of a quantized weight.

    Raises:
        CheckpointError: no block holds such codes.

    """
    kind = _KINDS[scheme.format.dtype] if isinstance(scheme.format, Cast) else kind_of(scheme)
    if kind is None:
        raise CheckpointError(f"GGUF has no block for '{scheme}'; use one of its own, such as q8_0 or q4_0")
    return kind


def float_kind(place: Place, shape: tuple[int, ...], dtype: str) -> str:
    """Return the type of a tensor that stays float: float32 for what llama.cpp adds or multiplies by itself."""
    if dtype not in _KINDS:
        raise CheckpointError(f"{place.name} is of type {dtype}, and a GGUF file of this version holds floats")
    by_itself = len(shape) < 2 or place.positions or place.name.endswith("norm.weight")
    return "F32" if by_itself else _KINDS[dtype]
