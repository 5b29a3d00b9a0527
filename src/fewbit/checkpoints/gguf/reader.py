"""A GGUF file as a checkpoint: its configuration, schemes and tensors, under the names that the model has for them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.checkpoints.finite_weights import require_finite_weights
from fewbit.checkpoints.gguf.architecture import Architecture, architecture_of
from fewbit.checkpoints.gguf.blocks import BLOCKS, unpack
from fewbit.checkpoints.gguf.container import PLAIN
from fewbit.checkpoints.gguf.metadata import configuration_of
from fewbit.checkpoints.gguf.stored_kind import FLOATS
from fewbit.checkpoints.gguf.tensor_names import Place, origins, scale_name
from fewbit.checkpoints.gguf_header import GgufHeader, GgufTensor
from fewbit.checkpoints.gguf_parts import place_of, read_gguf
from fewbit.errors import CheckpointError, FewbitError, NotYetError
from fewbit.interfaces import Checkpoint, StoredTensor
from fewbit.numerics.namespace import Array
from fewbit.qtensor import QTensor
from fewbit.schemes.gguf import scheme_of
from fewbit.schemes.scheme import Scheme

#: Models have up to some hundreds; for each there are some twenty names of tensors to look up.
MOST_BLOCKS = 4096
_DTYPES = {kind: dtype.name for kind, dtype in FLOATS.items()}
#: Of a tied model: whose weight the head takes.
_TIED = ("token_embd.weight", "output.weight")


def read_checkpoint(path: Path) -> Checkpoint:
    """Open the file at `path`.

    Raises:
        CheckpointError: no such file, or one that does not hold what it says.
        NotYetError: an architecture or a type of tensors that is not read.

    """
    header = read_gguf(path)
    try:
        configuration = configuration_of(header)
        found = _Found.of(header, configuration, path)
    except (KeyError, TypeError, ValueError, ArithmeticError) as error:
        raise CheckpointError(f"{path} has metadata that no model has: {error!r:.200}") from error
    except FewbitError as error:
        raise type(error)(f"{path} {error}") from error
    return Checkpoint(
        path=path,
        configuration=configuration,
        schemes=found.schemes,
        stored=tuple(
            StoredTensor(own.name, _DTYPES.get(own.kind, "uint8"), _stored_shape(own)) for own in header.tensors
        ),
        floats=found.floats,
        tensors=found.tensors,
    )


@dataclass(frozen=True, slots=True)
class _Found:
    """The tensors of a file by their names in the model."""

    path: Path
    header: GgufHeader
    #: Names in the model, and where each stands.
    tensors_of: Mapping[str, tuple[GgufTensor, Place]]
    schemes: Mapping[str, Scheme]
    #: Whether matrices of the blocks are stored by columns in the model, as those of GPT-2 are.
    turned: bool

    @classmethod
    def of(cls, header: GgufHeader, configuration: Mapping[str, Any], path: Path) -> _Found:
        architecture: Architecture = architecture_of(configuration)
        blocks = configuration.get("num_hidden_layers", configuration.get("n_layer"))
        if not isinstance(blocks, int) or not 0 < blocks <= min(len(header.tensors), MOST_BLOCKS):
            raise CheckpointError(f"says it has {blocks!r:.40} blocks, and holds {len(header.tensors)} tensors")
        known = origins(architecture, configuration)
        found: dict[str, tuple[GgufTensor, Place]] = {}
        wholes = {scale_name(own.name): own for own in header.tensors if own.kind == "NVFP4"}
        for own in header.tensors:
            if own.name in wholes and (own.kind, own.shape) == ("F32", (1,)):
                continue
            if own.name not in known:
                raise NotYetError(f"holds {own.name}, which {architecture.name} has no place for here")
            if own.kind not in BLOCKS and own.kind not in PLAIN:
                raise NotYetError(f"holds {own.name} of type {own.kind}, which is not read into codes")
            if not all(own.shape) or (own.kind in BLOCKS and len(own.shape) != 2):
                what = "is that of no matrix" if all(own.shape) else "holds no number"
                raise CheckpointError(f"gives {own.name} the shape {list(own.shape)}, which {what}")
            name, place = known[own.name]
            if place.heads and (own.shape[0] % (2 * place.heads) or not own.shape[0]):
                raise CheckpointError(f"gives {own.name} {own.shape[0]} rows, which are no {place.heads} heads")
            found[name] = (own, place)
        by_name = {own.name: own for own in header.tensors}
        if _TIED[1] not in by_name:
            head = known.get(_TIED[1], ("lm_head.weight", None))[0]
            found[head] = (by_name[_TIED[0]], Place(_TIED[0]))
        schemes = {
            name.removesuffix(".weight"): scheme_of(own.kind) for name, (own, _) in found.items() if own.kind in BLOCKS
        }
        return cls(path, header, found, schemes, architecture.name == "gpt2")

    @property
    def floats(self) -> tuple[StoredTensor, ...]:
        """The float tensors as `tensors` gives them."""
        return tuple(
            StoredTensor(name, _DTYPES[own.kind], own.shape[::-1] if self._by_columns(own) else own.shape)
            for name, (own, _) in self.tensors_of.items()
            if own.kind in PLAIN and not _is_twin(name, own)
        )

    def tensors(self) -> Iterator[tuple[str, Array | QTensor]]:
        """Yield floats by full name, QTensors by layer name."""
        for name, (own, place) in self.tensors_of.items():
            if _is_twin(name, own):
                continue
            raw = self._bytes(own)
            if own.kind in BLOCKS:
                rows = place.restored(raw.reshape(own.shape[0], -1))
                yield name.removesuffix(".weight"), self._unpacked(own, rows)
            else:
                numbers = place.restored(raw.view(FLOATS[own.kind]).reshape(own.shape))
                numbers = numbers - np.float32(1.0) if place.adds_one else numbers
                yield name, np.ascontiguousarray(numbers.T if self._by_columns(own) else numbers)

    def _by_columns(self, own: GgufTensor) -> bool:
        """Whether a float matrix lies the other way in the model."""
        return self.turned and own.name.startswith("blk.") and len(own.shape) == 2

    def _unpacked(self, own: GgufTensor, rows: np.ndarray[Any, Any]) -> QTensor:
        try:
            qtensor = unpack(rows, own.kind, self._whole_scale(own))
            require_finite_weights(qtensor)
        except CheckpointError as error:
            raise CheckpointError(f"{self.path}: {own.name}: {error}") from error
        return qtensor

    def _whole_scale(self, weight: GgufTensor) -> float:
        """Return what multiplies a weight as a whole; 1 where nothing does."""
        name = scale_name(weight.name)
        for own in self.header.tensors if weight.kind == "NVFP4" else ():
            if own.name == name:
                return float(self._bytes(own).view(np.float32)[0])
        return 1.0

    def _bytes(self, own: GgufTensor) -> np.ndarray[Any, Any]:
        file, start = place_of(self.path, self.header, own)
        raw = np.fromfile(file, np.uint8, own.nbytes, offset=start)
        if raw.size != own.nbytes:
            raise CheckpointError(f"{file} ended while {own.name} was read; is it being written?")
        return raw


def _is_twin(name: str, own: GgufTensor) -> bool:
    """Whether a float tensor is the embedding as a head, which the model ties."""
    return own.kind in PLAIN and own.name == _TIED[0] and name.startswith("lm_head")


def _stored_shape(own: GgufTensor) -> tuple[int, ...]:
    return own.shape if own.kind in PLAIN else (own.nbytes,)
