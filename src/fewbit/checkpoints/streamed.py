"""What checkpoint formats share that hold tensors by name: a result is put into them one tensor at a time."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fewbit.checkpoints.restated import restated
from fewbit.errors import CheckpointError
from fewbit.interfaces import Content, Manifest, QuantizedLayer, Source, Writer
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme


class Streamed(ABC):
    """The parts of `fewbit.interfaces.Target` that follow from `open`."""

    @abstractmethod
    def open(self, path: Path, manifest: Manifest, *, overwrite: bool = False) -> Writer:
        """Start writing a checkpoint that will hold exactly what `manifest` says."""

    @property
    def keeps_layers(self) -> bool:
        """The architecture stands elsewhere, and every tensor has its name there."""
        return True

    @property
    def holds_graph(self) -> bool:
        """Tensors are stored, and whoever loads them computes as they like."""
        return False

    @property
    def shares_weights(self) -> bool:
        """Every layer is stored on its own."""
        return False

    def source_problems(self, source: Source) -> Sequence[str]:  # noqa: ARG002
        """Return nothing: any model has names for its tensors."""
        return ()

    def fitted(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return the layer as it is: what cannot be held is a problem."""
        return quantized

    def cache_problem(self, scheme: Scheme) -> str | None:
        """Return why there is no place for the ranges of a key-value cache: a layout that has one says so."""
        return f"these files have no place for the ranges of a key-value cache, such as '{scheme}'; leave out `cache`"

    def held_as(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return the layer as it is: under its own schemes it keeps its values."""
        return quantized

    def nearest(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return the layer as it is held without loss: what that cannot be is a problem."""
        return self.held_as(quantized)

    def restated(self, qtensor: QTensor, scheme: Scheme) -> QTensor:
        """Return the same values with codes, zero points and scales as `scheme` counts them."""
        return restated(qtensor, scheme)

    def between(self, model: Any, batches: Sequence[Any]) -> None:  # noqa: ARG002
        """Round nothing between layers."""
        return

    def write(self, content: Content, path: Path, *, overwrite: bool = False) -> Path:
        """Write a result to `path`, complete or not at all, and return the path."""
        manifest = content.manifest
        wanted = {tensor.name for tensor in manifest.floats} | {own.layer.name for own in manifest.quantized}
        writer = self.open(path, manifest, overwrite=overwrite)
        try:
            for name, value in content.frontend.tensors(content.model, manifest.storage_type):
                if name in wanted:
                    writer.put(name, value)
            return writer.close()
        except OSError as error:
            raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
        finally:
            writer.abort()
