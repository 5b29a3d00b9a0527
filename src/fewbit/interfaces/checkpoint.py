"""Layouts of tensors by name on disk, written as a stream and read back."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fewbit.activation import Activation
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces.layer import QuantizedLayer
from fewbit.interfaces.manifest import Manifest, StoredTensor
from fewbit.interfaces.target import Target
from fewbit.numerics.namespace import Array
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme


class Writer(Protocol):
    """A checkpoint being written; it appears under its name only when closed."""

    def put(self, name: str, value: Array | QTensor | Activation | IntegerBias) -> None:
        """Write the next tensor: a float one by its full name, what belongs to a quantized layer by that one's."""

    def close(self) -> Path:
        """Finish, move into place, and return the path."""

    def abort(self) -> None:
        """Remove whatever was written."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """A checkpoint that was opened for reading."""

    path: Path
    #: `config.json` without `quantization_config`.
    configuration: Mapping[str, Any]
    #: Which layer has which scheme; shapes are the weights' own.
    schemes: Mapping[str, Scheme]
    #: How the inputs of layers are rounded; nothing for one whose input stays float.
    inputs: Mapping[str, Scheme] = field(default_factory=dict)
    #: Layers whose columns share scales in another order than their own (act-order): the scheme as it is stored. Their
    #: entry in `schemes` has the longest runs of neighbours that share one.
    scattered: Mapping[str, Scheme] = field(default_factory=dict)
    #: What the file holds, by name in the file.
    stored: tuple[StoredTensor, ...]
    #: The float tensors by full name, where the file has other names for them.
    floats: tuple[StoredTensor, ...] | None = None
    #: Reads the tensors: floats by full name, QTensors by layer name, each behind its static input.
    tensors: Callable[[], Iterable[tuple[str, Array | QTensor | Activation]]]
    #: Reads how keys and values are rounded on their way into the cache, by the name of the attention.
    caches: Callable[[], Mapping[str, tuple[Activation, Activation]]] = dict


class CheckpointFormat(Target, Protocol):
    """One on-disk layout of tensors by name, written as a stream and read back."""

    @property
    def name(self) -> str:
        """The word for it in `to=`, and the `quant_method` in the `config.json` of its folders."""

    def open(self, path: Path, manifest: Manifest, *, overwrite: bool = False) -> Writer:
        """Start writing a checkpoint that will hold exactly what `manifest` says."""

    def read(self, path: Path) -> Checkpoint:
        """Open the checkpoint at `path`."""

    def held_as(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return the layer under schemes that hold its values here; what these cannot is a `problem` of the layer."""

    def nearest(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return the layer under the nearest schemes that this layout has a form for; its values change."""

    def restated(self, qtensor: QTensor, scheme: Scheme) -> QTensor:
        """Return the values of `qtensor` under `scheme`; raises `CheckpointError` with the reason where it has none."""
