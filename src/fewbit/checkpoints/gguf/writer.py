"""A quantized language model on its way into a GGUF file, tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.activation import Activation
from fewbit.checkpoints.gguf.architecture import architecture_of
from fewbit.checkpoints.gguf.blocks import pack, tensor_scale
from fewbit.checkpoints.gguf.container import Entry, digest
from fewbit.checkpoints.gguf.file_type import file_type
from fewbit.checkpoints.gguf.metadata import QUANTIZATION_VERSION, model_values
from fewbit.checkpoints.gguf.parts import Parts, divided
from fewbit.checkpoints.gguf.rope import factor_tensors
from fewbit.checkpoints.gguf.stored_kind import FLOATS, float_kind, weight_kind
from fewbit.checkpoints.gguf.tensor_names import places, scale_name
from fewbit.checkpoints.gguf.tokenizer import carried_values, tokenizer_values
from fewbit.errors import CheckpointError
from fewbit.interfaces import Manifest, StoredTensor
from fewbit.numerics.namespace import Array, to_numpy
from fewbit.qtensor import QTensor

_Numbers = np.ndarray[Any, Any]


class GgufWriter:
    """A GGUF file being written, all of it announced by the manifest."""

    def __init__(self, path: Path, manifest: Manifest, pre: str | None = None, *, overwrite: bool = False) -> None:
        configuration = manifest.configuration
        architecture = architecture_of(configuration)
        shared = {f"{name}.weight": f"{owner}.weight" for name, owner in manifest.shared.items()}
        kinds = {f"{own.layer.name}.weight": weight_kind(own.scheme) for own in manifest.quantized}
        shapes: dict[str, tuple[int, ...]] = {f"{own.layer.name}.weight": own.layer.shape for own in manifest.quantized}
        self._turned = {f"{own.name}.weight" for own in manifest.kept if own.module_class == "Conv1D"}
        floats = _without_twin(manifest.floats, configuration)
        for own in floats:
            shapes[own.name] = own.shape[::-1] if own.name in self._turned else own.shape
        self._places = places(architecture, configuration, [name for name in shapes if name not in shared])
        for own in floats:
            kinds[own.name] = float_kind(self._places[own.name], shapes[own.name], own.dtype)
        self._entries = {name: Entry(place.name, kinds[name], shapes[name]) for name, place in self._places.items()}
        factors = factor_tensors(architecture, configuration)
        extra = [Entry(name, "F32", array.shape) for name, array in factors.items()]
        extra += [Entry(scale_name(own.name), "F32", (1,)) for own in self._entries.values() if own.kind == "NVFP4"]
        entries = [*self._entries.values(), *extra]
        values: dict[str, Any] = {"general.type": "model", "general.name": path.stem}
        values |= {"general.file_type": file_type(entries), "general.quantization_version": QUANTIZATION_VERSION}
        values |= model_values(architecture, configuration)
        values |= (
            carried_values(manifest.origin)
            if manifest.origin and pre is None
            else tokenizer_values(manifest.files, configuration, pre)
        )
        if values.setdefault("tokenizer.ggml.model", "no_vocab") == "no_vocab":
            values[f"{architecture.name}.vocab_size"] = int(configuration["vocab_size"])
        parts = divided(entries, manifest.shard_bytes)
        self._container = Parts(path, architecture.name, values, parts, overwrite=overwrite)
        self._left_out = {own.name for own in manifest.floats} - {own.name for own in floats}
        self._digests: dict[str, bytes] = {}
        self._twins = shared
        for name, array in factors.items():
            self._container.put(name, array.view(np.uint8))

    def put(self, name: str, value: Array | QTensor | Activation) -> None:
        """Write a float tensor by its full name, or a QTensor by its layer's name.

        Raises:
            CheckpointError: a tensor that was not announced, or scales that the file cannot hold.

        """
        if name in self._left_out:
            return
        if isinstance(value, QTensor):
            full = f"{name}.weight"
            kind = self._entries[self._twins.get(full, full)].kind
            rows = _blocks(value, kind)
            if kind == "NVFP4":
                scale = np.asarray([tensor_scale(value)], np.float32)
                self._container.put(scale_name(self._places[full].name), scale.view(np.uint8))
        elif isinstance(value, Activation):
            raise CheckpointError(f"{name} rounds its input, which a GGUF file has no place for")
        else:
            full, rows = name, self._floats(name, to_numpy(value))
        if full in self._twins:
            self._digests[full] = digest(rows)
            return
        place = self._places[full]
        self._digests[full] = digest(rows)
        self._container.put(place.name, place.ordered(rows))

    def close(self) -> Path:
        """Finish, move the file to its name, and return it."""
        for name, owner in self._twins.items():
            if self._digests.get(name) != self._digests.get(owner):
                raise CheckpointError(f"{name} is to be stored as {owner}, and has other numbers; a defect of fewbit")
        return self._container.close()

    def abort(self) -> None:
        """Remove everything written so far."""
        self._container.abort()

    def _floats(self, name: str, array: _Numbers) -> _Numbers:
        """Return the rows of float numbers as bytes."""
        place, kind = self._places[name], self._entries[name].kind
        numbers = array.T if name in self._turned else array
        if place.adds_one:
            numbers = numbers.astype(np.float32) + np.float32(1.0)
        stored = np.ascontiguousarray(numbers.astype(FLOATS[kind], copy=False))
        return stored.reshape(*stored.shape, 1).view(np.uint8).reshape(stored.shape[0], -1)


def _without_twin(floats: Sequence[StoredTensor], configuration: Mapping[str, Any]) -> list[StoredTensor]:
    """Return the float tensors but a head that is the embedding, where the front end could not see that it is."""
    names = {own.name for own in floats}
    twin = configuration.get("tie_word_embeddings") and {"model.embed_tokens.weight", "lm_head.weight"} <= names
    return [own for own in floats if not (twin and own.name == "lm_head.weight")]


def _blocks(value: QTensor, kind: str) -> _Numbers:
    value = value.map(to_numpy)
    if value.scheme.scaled:
        packed: _Numbers = pack(value, kind)
        return packed
    numbers = to_numpy(value.dequantize()).astype(FLOATS[kind])
    return np.ascontiguousarray(numbers).view(np.uint8)
