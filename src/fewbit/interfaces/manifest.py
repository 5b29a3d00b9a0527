"""What a checkpoint will hold, known before its first byte is written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from fewbit.activation import Activation
from fewbit.interfaces.layer import Layer, QuantizedLayer
from fewbit.schemes.scheme import ScaleType

#: Bytes of one number of each stored type.
BYTES = {
    "float64": 8, "float32": 4, "float16": 2, "bfloat16": 2, "float8_e4m3fn": 1, "float8_e5m2": 1,
    "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1,
}  # fmt: skip
FLOAT_TYPES = ("float64", "float32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor as a file will hold it, without its bytes."""

    #: Name in the file.
    name: str
    #: Key of `BYTES`.
    dtype: str
    #: Shape in the file.
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return prod(self.shape) * BYTES[self.dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything that a checkpoint will hold, known before its first byte is written."""

    #: Layers with quantized weights, in the model's order.
    quantized: tuple[QuantizedLayer, ...]
    #: Layers that keep float weights.
    kept: tuple[Layer, ...]
    #: Float tensors and buffers, among them kept weights and biases.
    floats: tuple[StoredTensor, ...]
    #: Type in which floats and scales are stored.
    storage_type: ScaleType
    #: The model's `config.json` as a dictionary; empty for a module of one's own.
    configuration: Mapping[str, Any] = field(default_factory=dict)
    #: How keys and values are rounded on their way into the cache, by the name of the attention; fixed ranges only.
    caches: Mapping[str, tuple[Activation, Activation]] = field(default_factory=dict)
    #: Further files by plain name: tokenizer, report.
    files: Mapping[str, bytes] = field(default_factory=dict)
    #: Layers whose weight, codes included, is that of another, by the name of that one.
    shared: Mapping[str, str] = field(default_factory=dict)
    #: The GGUF file that the model comes from, if it does: what it says of its tokenizer can be carried over.
    origin: Path | None = None
    #: The most bytes of tensors in one of several files; `None`: as many as the layout has usually.
    shard_bytes: int | None = None
    #: Where it is to be under construction, and to stay on failure; `None`: beside its name, and removed.
    place: Path | None = None
