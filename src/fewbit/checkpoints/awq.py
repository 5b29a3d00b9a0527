"""AWQ folders in the GEMM layout, as transformers, vLLM and SGLang load them: writer and reader.

Source: AutoAWQ, and transformers 5.23 with GPTQModel 7.7.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.activation import Activation
from fewbit.checkpoints.awq_config import METHOD, read_granularity, read_schemes, require_one_size, write_config
from fewbit.checkpoints.awq_layer import (
    BITS,
    MIDDLE,
    SUFFIXES,
    decoded,
    encoded,
    stored_parts,
    width_problem,
)
from fewbit.checkpoints.folder import NewFolder
from fewbit.checkpoints.linear_weights import LinearWeights
from fewbit.checkpoints.packed_folder import PackedFolder, configuration_of, read_packed
from fewbit.checkpoints.safetensors_file import read_tensors, stored_tensors
from fewbit.checkpoints.safetensors_folder import files_of
from fewbit.interfaces import Checkpoint, Manifest, StoredTensor
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Awq(LinearWeights):
    """4-bit weights of linear layers in groups, as AWQ's GEMM layout holds them."""

    title = "AWQ"
    bits = (BITS,)
    groups = (16, 32, 64, 128)

    @property
    def name(self) -> str:
        """The word for it in `to=`."""
        return METHOD

    def width_problem(self, shape: tuple[int, int], scheme: Scheme) -> str | None:  # noqa: ARG002
        """Return that a weight of `shape` (out, in) does not fill whole words, or `None`."""
        return width_problem(shape)

    def parts(self, name: str, shape: tuple[int, int], scheme: Scheme) -> tuple[StoredTensor, ...]:
        """Return what stands in the file for the weight of `shape` (out, in) of layer `name`."""
        return stored_parts(name, shape, scheme)

    def open(self, path: Path, manifest: Manifest, *, overwrite: bool = False) -> PackedFolder:
        """Start a folder that will hold exactly what `manifest` says; use it as a context manager."""
        require_one_size(manifest)
        stored = [part for own in manifest.quantized for part in self.tensors(own, manifest.storage_type)]
        return PackedFolder(
            NewFolder(path, overwrite=overwrite, place=manifest.place),
            [*manifest.floats, *stored],
            manifest,
            _Packing(manifest),
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

    def encoded(self, name: str, value: QTensor | Activation) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays of one weight."""
        assert isinstance(value, QTensor)  # `problem` refuses inputs that are rounded
        return encoded(name, value)

    def rest(self) -> tuple[()]:
        """Return nothing: every array is known with its weight."""
        return ()

    def held(self, names: Iterable[str]) -> dict[str, np.ndarray[Any, Any]]:  # noqa: ARG002
        """Return nothing: every array is known with its weight."""
        return {}

    def hold(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take back nothing."""
        assert not arrays

    def described(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return `quantization_config`; there is no other file."""
        return {"quantization_config": write_config(self.manifest)}, {}


def _symmetric(files: list[Path]) -> Iterator[str]:
    """Yield the layers whose zero points all are in the middle."""
    for file in files:
        for full_name, array in read_tensors(file):
            middle = full_name.endswith(".qzeros") and array.dtype == np.int32 and array.size
            if middle and bool((array.view(np.uint32) == MIDDLE).all()):
                yield full_name.removesuffix(".qzeros")
