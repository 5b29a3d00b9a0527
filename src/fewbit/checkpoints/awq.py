"""AWQ folders in the GEMM layout, as transformers, vLLM and SGLang load them: writer and reader.

Source: AutoAWQ, and transformers 5.23 with GPTQModel 7.7.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.checkpoints.awq_config import METHOD, read_granularity, read_schemes, require_one_size, write_config
from fewbit.checkpoints.awq_layer import (
    BITS,
    MIDDLE,
    SCALES,
    SUFFIXES,
    decoded,
    encoded,
    stored_parts,
    width_problem,
)
from fewbit.checkpoints.folder import NewFolder
from fewbit.checkpoints.linear_weights import held_as, nearest, problem_of
from fewbit.checkpoints.packed_folder import PackedFolder, configuration_of, read_packed
from fewbit.checkpoints.safetensors_file import read_tensors, stored_tensors
from fewbit.checkpoints.safetensors_folder import files_of
from fewbit.checkpoints.streamed import Streamed
from fewbit.interfaces import Checkpoint, Layer, Manifest, QuantizedLayer, StoredTensor
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import ScaleType, Scheme

#: The sizes of groups that the kernels of runtimes have.
GROUPS = (16, 32, 64, 128)


@dataclass(frozen=True, slots=True)
class Awq(Streamed):
    """4-bit weights of linear layers in groups, as AWQ's GEMM layout holds them."""

    @property
    def name(self) -> str:
        """The word for it in `to=`."""
        return METHOD

    def problem(self, quantized: QuantizedLayer) -> str | None:
        """Return why this layout cannot hold a layer under its schemes, or `None`."""
        return problem_of(quantized, "AWQ", (BITS,), GROUPS) or width_problem(quantized.layer.shape)

    def held_as(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return the layer in integers and groups that hold the levels of its own, where there are such."""
        return held_as(quantized, (BITS,), GROUPS)

    def nearest(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return the layer in the nearest integers and groups, its input and output in float."""
        return nearest(quantized, (BITS,), GROUPS)

    def product_problem(self, product: Layer, scheme: Scheme) -> str | None:  # noqa: ARG002
        """Return why this layout cannot hold a rounded product inside attention: it holds weights."""
        return "AWQ files hold weights only; keep the products inside attention"

    def scale_type(self, storage_type: ScaleType) -> ScaleType:  # noqa: ARG002
        """Scales are float16, whatever the model's float numbers are."""
        return SCALES

    def tensors(self, quantized: QuantizedLayer, storage_type: ScaleType) -> tuple[StoredTensor, ...]:  # noqa: ARG002
        """Return what stands in the file for a quantized layer."""
        return stored_parts(quantized.layer.name, quantized.layer.shape, quantized.scheme)

    def open(self, path: Path, manifest: Manifest, *, overwrite: bool = False) -> PackedFolder:
        """Start a folder that will hold exactly what `manifest` says; use it as a context manager."""
        require_one_size(manifest)
        stored = [part for own in manifest.quantized for part in self.tensors(own, manifest.storage_type)]
        return PackedFolder(
            NewFolder(path, overwrite=overwrite), [*manifest.floats, *stored], manifest, _Packing(manifest)
        )

    def read(self, path: Path) -> Checkpoint:
        """Open the folder at `path`; tensors are read when asked for.

        A layer whose zero points all are in the middle is symmetric; the configuration does not say.

        Raises:
            CheckpointError: no such folder, or files that do not fit together.
            NotYetError: other bits than 4, other layouts than GEMM.

        """
        path = Path(path)
        configuration, quantization = configuration_of(path, METHOD)
        size = read_granularity(quantization)
        files = files_of(path)
        stored = tuple(tensor for file in files for tensor in stored_tensors(file))
        schemes = read_schemes(size, {tensor.name: tensor for tensor in stored})
        for name in _symmetric(files):
            if name in schemes:
                schemes[name] = replace(schemes[name], symmetric=True, range_method=None)
        return Checkpoint(
            path=path,
            configuration=configuration,
            schemes=schemes,
            stored=stored,
            tensors=lambda: read_packed(files, schemes, stored, SUFFIXES, decoded),
        )


@dataclass(frozen=True, slots=True)
class _Packing:
    """Packs the weights of a manifest."""

    manifest: Manifest

    def encoded(self, name: str, qtensor: QTensor) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays of one weight."""
        return encoded(name, qtensor)

    def rest(self) -> tuple[()]:
        """Return nothing: every array is known with its weight."""
        return ()

    def configuration(self) -> tuple[dict[str, Any], None]:
        """Return `quantization_config`; no other file gets a copy."""
        return write_config(self.manifest), None


def _symmetric(files: list[Path]) -> Iterator[str]:
    """Yield the layers whose zero points all are in the middle."""
    for file in files:
        for full_name, array in read_tensors(file):
            middle = full_name.endswith(".qzeros") and array.dtype == np.int32 and array.size
            if middle and bool((array.view(np.uint32) == MIDDLE).all()):
                yield full_name.removesuffix(".qzeros")
