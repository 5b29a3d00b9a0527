"""A folder of quantized weights being written, as compressed-tensors, GPTQ and AWQ have it; the tensors of one read."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

import numpy as np

from fewbit.activation import Activation
from fewbit.checkpoints.folder import NewFolder
from fewbit.checkpoints.hashes import REPORT, hashed
from fewbit.checkpoints.json_object import read_object
from fewbit.checkpoints.own_files import require_own
from fewbit.checkpoints.safetensors_file import ShardedWriter, read_tensors
from fewbit.checkpoints.tensor_name import require_plain
from fewbit.errors import CheckpointError
from fewbit.interfaces import Manifest, StoredTensor
from fewbit.numerics.namespace import Array, to_numpy
from fewbit.qtensor import QTensor

Form = TypeVar("Form")
Arrays = dict[str, np.ndarray[Any, Any]]


class Packing(Protocol):
    """How the weights of a layout are packed."""

    def encoded(self, name: str, value: QTensor | Activation) -> Arrays:
        """Return by suffix the arrays of the weight, or of the static range of the input, of layer `name`."""

    def rest(self) -> Iterable[tuple[str, np.ndarray[Any, Any]]]:
        """Return by full name the arrays that stand behind all weights."""

    def held(self, names: Iterable[str]) -> Arrays:
        """Return by layer the arrays of those called `names` that are held back for the end."""

    def hold(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take back what `held` told of in an earlier run."""

    def described(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return what `config.json` says of all this, and the content of further JSON files by their names."""


class PackedFolder:
    """A folder being written; an exception inside its `with` block removes it."""

    def __init__(self, folder: NewFolder, stored: Sequence[StoredTensor], manifest: Manifest, packing: Packing) -> None:
        self._folder = folder
        self._manifest = manifest
        self._packing = packing
        #: Further files by their names, which became known while it was written.
        self._files: dict[str, bytes] = {}
        try:
            for tensor in stored:
                require_plain(tensor.name)
            self._weights = ShardedWriter(folder.path, stored, shard_bytes=manifest.shard_bytes)
        except CheckpointError:
            folder.remove()
            raise

    def put(self, name: str, value: Array | QTensor | Activation) -> None:
        """Write a float tensor by its full name, or a QTensor or a static input by its layer's name."""
        if not isinstance(value, QTensor | Activation):
            self._weights.put(name, to_numpy(value))
            return
        for suffix, array in self._packing.encoded(name, value).items():
            self._weights.put(f"{name}.{suffix}", array)

    def add(self, files: Mapping[str, bytes]) -> None:
        """Write further files when it is closed."""
        self._files |= files

    def settled(self, layers: Iterable[str]) -> tuple[dict[str, str], Arrays]:
        """Bring to the disk what came; return what `go_on` wants: digests of tensors, and what of `layers` is held."""
        return self._weights.settled(), self._packing.held(layers)

    def go_on(self, digests: Mapping[str, str], held: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Go on where an earlier run has ended; raises `CheckpointError` where what it wrote is not there."""
        self._weights.go_on(digests)
        self._packing.hold(held)

    def close(self) -> Path:
        """Write configuration and companions, move the folder to its name, and return it."""
        for name, array in self._packing.rest():
            self._weights.put(name, array)
        self._weights.close()
        said, more = self._packing.described()
        described = {**more, "config.json": {**self._manifest.configuration, **said}}
        files = {**self._manifest.files, **self._files}
        report = files.pop(REPORT, None)
        for name, content in files.items():
            if name not in described:
                self._folder.write(name, content)
        for name, table in described.items():
            self._folder.write(name, _as_json(table))
        if report is not None:
            others = [path for path in self._folder.path.iterdir() if path.name != REPORT]
            self._folder.write(REPORT, hashed(report, REPORT, others))
        return self._folder.commit()

    def abort(self) -> None:
        """Remove everything written so far."""
        self._folder.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is not None:
            self.abort()


def configuration_of(path: Path, method: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of `config.json` without its `quantization_config`, and that, which must be of `method`."""
    file = path / "config.json"
    require_own(file)
    configuration = read_object(file)
    quantization = configuration.pop("quantization_config", None)
    if not isinstance(quantization, dict) or quantization.get("quant_method") != method:
        raise CheckpointError(f"{file} does not describe a {method} checkpoint")
    return configuration, quantization


def read_packed(
    files: Sequence[Path],
    forms: Mapping[str, Form],
    stored: Sequence[StoredTensor],
    suffixes: Sequence[str],
    decoded: Callable[[str, Arrays, Form], QTensor],
) -> Iterator[tuple[str, Array | QTensor | Activation]]:
    """Yield float tensors by full name, and each weight by its layer's name as soon as its last part came."""
    owners = [_split(tensor.name, forms, suffixes)[0] for tensor in stored]
    missing = Counter(name for name in owners if name is not None)
    waiting: dict[str, Arrays] = {}
    for file in files:
        for full_name, array in read_tensors(file):
            name, suffix = _split(full_name, forms, suffixes)
            if name is None:
                yield full_name, array
                continue
            waiting.setdefault(name, {})[suffix] = array
            missing[name] -= 1
            if not missing[name]:
                yield name, decoded(name, waiting.pop(name), forms[name])


def _split(full_name: str, forms: Mapping[str, Any], suffixes: Sequence[str]) -> tuple[str | None, str]:
    name, _, suffix = full_name.rpartition(".")
    return (name, suffix) if name in forms and suffix in suffixes else (None, suffix)


def _as_json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode()
