"""GPTQ folders, as transformers, vLLM and SGLang load them: writer and reader.

Written as checkpoint_format `gptq`, which all readers know, unless a zero point is 0: then as `gptq_v2`, since readers
of `gptq` disagree on it. Source: GPTQModel 7.7.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.activation import Activation
from fewbit.checkpoints.folder import NewFolder
from fewbit.checkpoints.gptq_config import BITS, METHOD, read_forms, write_config
from fewbit.checkpoints.gptq_layer import (
    SUFFIXES,
    Form,
    decoded,
    encoded,
    holds_zero,
    lessened,
    refined,
    run_length,
    stored_parts,
    width_problem,
)
from fewbit.checkpoints.linear_weights import WHOLE_ROW, LinearWeights, group_size
from fewbit.checkpoints.packed_folder import PackedFolder, configuration_of, read_packed
from fewbit.checkpoints.safetensors_file import read_tensors, stored_tensors
from fewbit.checkpoints.safetensors_folder import files_of
from fewbit.interfaces import Checkpoint, Manifest, StoredTensor
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme

#: A copy of `quantization_config` in a file of its own, where older readers look.
COPY = "quantize_config.json"


@dataclass(frozen=True, slots=True)
class Gptq(LinearWeights):
    """Integer weights of linear layers as GPTQ files hold them."""

    title = "GPTQ"
    bits = BITS
    groups = (WHOLE_ROW, 16, 32, 64, 128, 256, 512, 1024)

    @property
    def name(self) -> str:
        """The word for it in `to=`."""
        return METHOD

    def width_problem(self, shape: tuple[int, int], scheme: Scheme) -> str | None:
        """Return that a weight of `shape` (out, in) does not fill whole words, or `None`."""
        return width_problem(shape, scheme)

    def parts(self, name: str, shape: tuple[int, int], scheme: Scheme) -> tuple[StoredTensor, ...]:
        """Return what stands in the file for the weight of `shape` (out, in) of layer `name`."""
        return stored_parts(name, shape, scheme)

    def open(self, path: Path, manifest: Manifest, *, overwrite: bool = False) -> PackedFolder:
        """Start a folder that will hold exactly what `manifest` says; use it as a context manager."""
        stored = [part for own in manifest.quantized for part in self.tensors(own, manifest.storage_type)]
        # Whether zero points are stored as they are is known behind the last of them, so they stand last.
        stored.sort(key=lambda part: part.name.endswith(".qzeros"))
        packing = _Packing(manifest)
        return PackedFolder(
            NewFolder(path, overwrite=overwrite, place=manifest.place), [*manifest.floats, *stored], manifest, packing
        )

    def read(self, path: Path) -> Checkpoint:
        """Open the folder at `path`; tensors are read when asked for.

        Raises:
            CheckpointError: no such folder, or files that do not fit together.
            NotYetError: other packings than int32 words of 2, 3, 4 and 8 bits.

        """
        path = Path(path)
        configuration, quantization = configuration_of(path, METHOD)
        files = files_of(path)
        stored = tuple(tensor for file in files for tensor in stored_tensors(file))
        forms = read_forms(quantization, {tensor.name: tensor for tensor in stored})
        sizes = _scattered(files, forms)
        schemes = {name: form.scheme for name, form in forms.items()}
        return Checkpoint(
            path=path,
            configuration=configuration,
            schemes=schemes | {name: refined(schemes[name], size) for name, size in sizes.items()},
            scattered={name: schemes[name] for name in sizes},
            stored=stored,
            tensors=lambda: read_packed(files, forms, stored, SUFFIXES, decoded),
        )


class _Packing:
    """Packs the weights of a manifest and holds back their zero points."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._bits = {own.layer.name: own.scheme.format.bits for own in manifest.quantized}
        self._zeros: dict[str, np.ndarray[Any, Any]] = {}
        self._whole = False

    def encoded(self, name: str, value: QTensor | Activation) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays of one weight but for its zero points."""
        assert isinstance(value, QTensor)  # `problem` refuses inputs that are rounded
        arrays = encoded(name, value)
        self._zeros[name] = arrays.pop("qzeros")
        self._whole = self._whole or holds_zero(self._zeros[name], self._bits[name])
        return arrays

    def rest(self) -> Iterator[tuple[str, np.ndarray[Any, Any]]]:
        """Yield the zero points by full name."""
        for name, words in self._zeros.items():
            yield f"{name}.qzeros", words if self._whole else lessened(words, self._bits[name])

    def held(self, names: Iterable[str]) -> dict[str, np.ndarray[Any, Any]]:
        """Return the zero points of layers: how they are stored is known behind the last."""
        return {name: self._zeros[name] for name in names if name in self._zeros}

    def hold(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take back zero points."""
        for name, words in arrays.items():
            self._zeros[name] = words
            self._whole = self._whole or holds_zero(words, self._bits[name])

    def described(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return `quantization_config`, and the file that has a copy of it."""
        quantization = write_config(self._manifest, whole_zeros=self._whole)
        return {"quantization_config": quantization}, {COPY: quantization}


def _scattered(files: list[Path], forms: dict[str, Form]) -> dict[str, int]:
    """Return the layers whose groups are no runs of neighbours, with the length of the runs that there are."""
    sizes = {}
    for file in files:
        for full_name, index in read_tensors(file):
            name, _, suffix = full_name.rpartition(".")
            if suffix == "g_idx" and name in forms and forms[name].scattered and index.ndim == 1 and index.size:
                size = group_size(forms[name].scheme) or WHOLE_ROW
                size = len(index) if size == WHOLE_ROW else min(size, len(index))
                if not np.array_equal(index, np.arange(len(index)) // size):
                    sizes[name] = run_length(index)
    return sizes
