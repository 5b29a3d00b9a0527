"""The compressed-tensors layout of Hugging Face folders, as vLLM and transformers load it: writer and reader.

Weights, and what rounds the inputs of their layers; casts stand beside them as plain tensors. Source:
compressed-tensors 0.20.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.activation import Activation
from fewbit.checkpoints.compressed_tensors_blocks import BLOCKS, block_layout
from fewbit.checkpoints.compressed_tensors_caches import (
    cache_problem,
    decoded_caches,
    encoded_caches,
    is_of_cache,
    read_cache_scheme,
    stored_caches,
)
from fewbit.checkpoints.compressed_tensors_casts import (
    KEY,
    cast_problem,
    decoded_cast,
    encoded_cast,
    read_casts,
    stored_cast,
    written_casts,
)
from fewbit.checkpoints.compressed_tensors_config import require_targets, write_config
from fewbit.checkpoints.compressed_tensors_form import Form
from fewbit.checkpoints.compressed_tensors_inputs import (
    INPUT_SUFFIXES,
    decoded_input,
    encoded_input,
    fitted_input,
    input_problem,
    require_fitting,
    stored_input,
)
from fewbit.checkpoints.compressed_tensors_layer import SUFFIXES, decoded, encoded, stored_parts
from fewbit.checkpoints.compressed_tensors_schemes import read_forms
from fewbit.checkpoints.folder import NewFolder
from fewbit.checkpoints.json_object import read_object
from fewbit.checkpoints.packed_folder import PackedFolder
from fewbit.checkpoints.safetensors_file import read_tensors, stored_tensors
from fewbit.checkpoints.safetensors_folder import files_of
from fewbit.checkpoints.streamed import Streamed
from fewbit.errors import CheckpointError
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import E4M3
from fewbit.interfaces import Checkpoint, Layer, Manifest, QuantizedLayer, StoredTensor
from fewbit.numerics.namespace import Array
from fewbit.qtensor import QTensor
from fewbit.schemes.gguf import as_integers
from fewbit.schemes.granularity import PerChannel, PerGroup, PerTensor
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import ScaleType, Scheme


@dataclass(frozen=True, slots=True)
class CompressedTensors(Streamed):
    """Weights and ranges of inputs as compressed-tensors stores them."""

    @property
    def name(self) -> str:
        """The word for it in `to=`."""
        return "compressed-tensors"

    def problem(self, quantized: QuantizedLayer) -> str | None:
        """Return why this layout cannot hold a layer under its schemes, or `None`."""
        layer, scheme = quantized.layer, quantized.scheme
        if not scheme.scaled:
            return cast_problem(quantized)
        if layer.module_class != "Linear":
            why = (
                "a checkpoint keeps the experts of this architecture in one parameter, which has no form in this layout"
                if layer.module_class == "FusedExpert"
                else "transformers runs compressed-tensors weights of Linear modules only, and this one is "
                f"of class {layer.module_class}"
            )
            return f"{why}; keep it, or save the module's state_dict instead"
        if (problem := _weight_problem(scheme)) is not None:
            return problem
        if quantized.output:
            return (
                f"fewbit's compressed-tensors writer rounds no outputs, and here is "
                f"'{input_scheme_to_text(quantized.output)}'; leave out `output`, or save the module's state_dict"
            )
        if quantized.bias != "float":
            return "compressed-tensors stores a bias as floats; leave out `bias`, or save the module's state_dict"
        return input_problem(quantized.input) if quantized.input else None

    def fitted(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return what a preset gives a layer here instead: inputs by a range that the layout has."""
        return replace(quantized, input=fitted_input(quantized.input))

    def held_as(self, quantized: QuantizedLayer) -> QuantizedLayer:
        """Return the layer in the integers that hold the levels of its own, where it is of a block of GGUF."""
        return replace(quantized, scheme=as_integers(quantized.scheme))

    def product_problem(self, product: Layer, scheme: Scheme) -> str | None:  # noqa: ARG002
        """Return why this layout cannot hold a rounded product inside attention: it never can."""
        return (
            "compressed-tensors has no place for rounded products inside attention; keep them, or save the module's "
            "state_dict instead"
        )

    def cache_problem(self, scheme: Scheme) -> str | None:
        """Return why this layout has no place for the ranges of a cache that is rounded so, or `None`."""
        return cache_problem(scheme)

    def scale_type(self, storage_type: ScaleType) -> ScaleType:
        """Scales have the type of the model's float numbers."""
        return storage_type

    def tensors(self, quantized: QuantizedLayer, storage_type: ScaleType) -> tuple[StoredTensor, ...]:
        """Return what stands in the file for a quantized layer."""
        layer = quantized.layer
        if not quantized.scheme.scaled:
            return (stored_cast(quantized),)
        weight = stored_parts(layer.name, layer.shape, Form.of(quantized), storage_type)
        return (*weight, *stored_input(layer.name, quantized.input, storage_type))

    def open(self, path: Path, manifest: Manifest, *, overwrite: bool = False) -> PackedFolder:
        """Start a folder that will hold exactly what `manifest` says; use it as a context manager."""
        stored = [*manifest.floats]
        for quantized in manifest.quantized:
            stored += self.tensors(quantized, manifest.storage_type)
        stored += stored_caches(manifest.caches, manifest.storage_type)
        require_targets(layer.name for layer in (*manifest.kept, *(q.layer for q in manifest.quantized)))
        return PackedFolder(
            NewFolder(path, overwrite=overwrite, place=manifest.place), stored, manifest, _Packing(manifest)
        )

    def read(self, path: Path) -> Checkpoint:
        """Open the folder at `path`; tensors are read when asked for.

        Raises:
            CheckpointError: no such folder, or files that do not fit together.
            NotYetError: quantized outputs, or caches by dynamic ranges.

        """
        path = Path(path)
        configuration = _configuration(path)
        quantization = configuration.pop("quantization_config", None)
        files = files_of(path)
        stored = tuple(tensor for file in files for tensor in stored_tensors(file))
        by_name = {tensor.name: tensor for tensor in stored}
        casts = read_casts(configuration, by_name)
        configuration.pop(KEY, None)
        forms = read_forms(quantization, by_name) if quantization else {}
        cached = read_cache_scheme((quantization or {}).get("kv_cache_scheme"), by_name)
        for name in casts.keys() & forms.keys():
            raise CheckpointError(f"{name} has a weight_scale, but {KEY} of config.json says that it is a cast")
        schemes = {name: (form.scheme, form.input) for name, form in forms.items()} | casts
        return Checkpoint(
            path=path,
            configuration=configuration,
            schemes={name: scheme for name, (scheme, _) in schemes.items()},
            inputs={name: given for name, (_, given) in schemes.items() if given},
            stored=stored,
            tensors=lambda: _read(files, forms, {name: scheme for name, (scheme, _) in casts.items()}, cached),
            caches=lambda: decoded_caches(_of_caches(files, cached), cached),
        )


class _Packing:
    """Packs the weights and the static inputs of a manifest."""

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest
        self._layers = {quantized.layer.name: quantized for quantized in manifest.quantized}

    def encoded(self, name: str, value: QTensor | Activation) -> dict[str, np.ndarray[Any, Any]]:
        """Return the arrays of a weight or of a static input."""
        storage_type, layer = self._manifest.storage_type, self._layers[name]
        if isinstance(value, Activation):
            return encoded_input(name, value, storage_type)
        if not value.scheme.scaled:
            return {"weight": encoded_cast(value, stored_cast(layer).shape)}
        return encoded(name, value, Form.of(layer), storage_type)

    def rest(self) -> Iterable[tuple[str, np.ndarray[Any, Any]]]:
        """Return the ranges of caches by full name."""
        return encoded_caches(self._manifest.caches, self._manifest.storage_type).items()

    def held(self, names: Iterable[str]) -> dict[str, np.ndarray[Any, Any]]:  # noqa: ARG002
        """Return nothing: every array is known with its weight."""
        return {}

    def hold(self, arrays: Mapping[str, np.ndarray[Any, Any]]) -> None:
        """Take back nothing."""
        assert not arrays

    def described(self) -> tuple[dict[str, Any], dict[str, Any]]:
        """Return `quantization_config`, and the entry of casts, where there are such; no other file."""
        quantized = self._manifest.quantized
        scaled = any(layer.scheme.scaled for layer in quantized)
        casts = written_casts(layer for layer in quantized if not layer.scheme.scaled)
        said = {"quantization_config": write_config(self._manifest)} if scaled else {}
        return said | ({KEY: casts} if casts else {}), {}


def _weight_problem(scheme: Scheme) -> str | None:
    """Return why a weight cannot stand in the file under `scheme`, or `None`."""
    if block_layout(scheme):
        return None
    whole = isinstance(scheme.format, Int) and scheme.format.signed and scheme.format.bits <= 8
    known = scheme.granularity in (PerTensor(), PerChannel()) or isinstance(scheme.granularity, PerGroup)
    plain = scheme.scale_scheme is None and scheme.span is None
    if not (whole or scheme.format == E4M3) or not known or not plain:
        return (
            f"compressed-tensors has no layout for '{scheme}'; use int1 to int8 or e4m3 by tensor, channel or group, "
            f"{', '.join(str(own) for own in BLOCKS.values())}, fp16 or bf16"
        )
    return None


def _configuration(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    configuration = read_object(file)
    quantization = configuration.get("quantization_config")
    if quantization is None and KEY in configuration:
        return configuration
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "compressed-tensors":
        raise CheckpointError(f"{file} does not describe a compressed-tensors checkpoint")
    return configuration


def _of_caches(files: list[Path], cached: Mapping[str, Scheme]) -> dict[str, np.ndarray[Any, Any]]:
    every = (pair for file in (files if cached else []) for pair in read_tensors(file))
    return {name: array for name, array in every if is_of_cache(name, cached)}


def _read(
    files: list[Path], forms: Mapping[str, Form], casts: Mapping[str, Scheme], cached: Mapping[str, Scheme]
) -> Iterator[tuple[str, Array | QTensor | Activation]]:
    waiting: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for file in files:
        for full_name, array in read_tensors(file):
            name, _, suffix = full_name.rpartition(".")
            if is_of_cache(full_name, cached):
                continue
            if name in casts and suffix == "weight":
                yield name, decoded_cast(name, array, casts[name])
                continue
            if name not in forms or suffix not in (*SUFFIXES, *INPUT_SUFFIXES):
                yield full_name, array
                continue
            waiting.setdefault(name, {})[suffix] = array
    for name, tensors in waiting.items():
        form = forms[name]
        weight = {suffix: array for suffix, array in tensors.items() if suffix in SUFFIXES}
        if form.input and form.input.static:
            yield name, decoded_input(name, tensors, form.input)
        qtensor = decoded(name, weight, form)
        if form.input:
            require_fitting(name, form.input, qtensor.shape[1])
        yield name, qtensor
