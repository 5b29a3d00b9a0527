"""The compressed-tensors layout of Hugging Face folders, as vLLM and transformers load it: writer and reader.

Integers go to `pack-quantized`: code + 2^(b-1) in dense little-endian int32 words, zero points packed along the
output axis; e4m3 goes to `naive-quantized`. Source: compressed-tensors 0.20, `QuantizationArgs` and its compressors.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np

from fewbit.checkpoints.compressed_tensors_config import read_schemes, write_config
from fewbit.checkpoints.folder import NewFolder
from fewbit.checkpoints.safetensors_file import (
    ShardedWriter,
    files_of,
    numpy_type,
    read_tensors,
    stored_tensors,
)
from fewbit.errors import CheckpointError
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import E4M3
from fewbit.formats.scale_type import scale_fits
from fewbit.interfaces import Checkpoint, Layer, Manifest, QuantizedLayer, StoredTensor
from fewbit.numerics.namespace import Array, to_numpy
from fewbit.numerics.packing import pack, unpack
from fewbit.qtensor import QTensor, scale_shape
from fewbit.schemes.granularity import PerChannel, PerGroup, PerTensor
from fewbit.schemes.scheme import ScaleType, Scheme

_SUFFIXES = ("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight")


@dataclass(frozen=True, slots=True)
class CompressedTensors:
    """Weights as compressed-tensors stores them."""

    @property
    def name(self) -> str:
        """The word for it in `to=`."""
        return "compressed-tensors"

    def problem(self, layer: Layer, scheme: Scheme) -> str | None:
        """Return why this layout cannot hold `layer` under `scheme`, or `None`."""
        if layer.module_class != "Linear":
            return (
                f"transformers runs compressed-tensors weights of Linear modules only, and this one is "
                f"of class {layer.module_class}; keep it, or save the module's state_dict instead"
            )
        whole = isinstance(scheme.format, Int) and scheme.format.signed and scheme.format.bits <= 8
        known = scheme.granularity in (PerTensor(), PerChannel()) or isinstance(scheme.granularity, PerGroup)
        if not (whole or scheme.format == E4M3) or not known or scheme.scale_scheme is not None:
            return (
                f"fewbit's compressed-tensors writer has no layout for '{scheme}'; "
                "use int1 to int8 or e4m3 by tensor, channel or group"
            )
        return None

    def scale_type(self, storage_type: ScaleType) -> ScaleType:
        """Scales have the type of the model's float numbers."""
        return storage_type

    def tensors(self, quantized: QuantizedLayer, storage_type: ScaleType) -> tuple[StoredTensor, ...]:
        """Return what stands in the file for a quantized layer."""
        scheme, name, (out, width) = quantized.scheme, quantized.layer.name, quantized.layer.shape
        scale = StoredTensor(f"{name}.weight_scale", storage_type, _scale_shape((out, width), scheme))
        if not isinstance(scheme.format, Int):
            return StoredTensor(f"{name}.weight", "float8_e4m3fn", (out, width)), scale
        stored = (
            StoredTensor(f"{name}.weight_packed", "int32", (out, _words(width, scheme.format.bits))),
            scale,
            StoredTensor(f"{name}.weight_shape", "int64", (2,)),
        )
        return stored if scheme.symmetric else (*stored, _zero_point_as_stored(name, (out, width), scheme))

    def open(self, path: Path, manifest: Manifest, *, overwrite: bool = False) -> FolderWriter:
        """Start a folder that will hold exactly what `manifest` says; use it as a context manager."""
        stored = [*manifest.floats]
        for quantized in manifest.quantized:
            stored += self.tensors(quantized, manifest.storage_type)
        return FolderWriter(NewFolder(path, overwrite=overwrite), stored, manifest)

    def read(self, path: Path) -> Checkpoint:
        """Open the folder at `path`; tensors are read when asked for.

        Raises:
            CheckpointError: no such folder, or files that do not fit together.
            NotYetError: quantized activations or caches.

        """
        path = Path(path)
        configuration = _configuration(path)
        quantization = configuration.pop("quantization_config")
        files = files_of(path)
        stored = tuple(tensor for file in files for tensor in stored_tensors(file))
        schemes = read_schemes(quantization, {tensor.name: tensor for tensor in stored})
        return Checkpoint(
            path=path,
            configuration=configuration,
            schemes=schemes,
            stored=stored,
            tensors=lambda: _read(files, schemes),
        )


class FolderWriter:
    """A compressed-tensors folder being written; an exception inside its `with` block removes it."""

    def __init__(self, folder: NewFolder, stored: list[StoredTensor], manifest: Manifest) -> None:
        self._folder = folder
        self._manifest = manifest
        self._weights = ShardedWriter(folder.path, stored)

    def put(self, name: str, value: Array | QTensor) -> None:
        """Write a float tensor by its full name, or a QTensor by its layer's name."""
        if not isinstance(value, QTensor):
            self._weights.put(name, to_numpy(value))
            return
        for suffix, array in _encoded(name, value, self._manifest.storage_type).items():
            self._weights.put(f"{name}.{suffix}", array)

    def close(self) -> Path:
        """Write configuration and companions, move the folder to its name, and return it."""
        self._weights.close()
        configuration = {
            **self._manifest.configuration,
            "quantization_config": write_config(self._manifest),
        }
        files = {**self._manifest.files, "config.json": (json.dumps(configuration, indent=2) + "\n").encode()}
        for name, content in files.items():
            self._folder.write(name, content)
        return self._folder.commit()

    def abort(self) -> None:
        """Remove everything written so far."""
        self._folder.remove()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        if kind is not None:
            self.abort()


def _encoded(name: str, qtensor: QTensor, storage_type: ScaleType) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of one layer by their suffix, in the order of `CompressedTensors.tensors`."""
    scheme = qtensor.scheme
    scale = to_numpy(qtensor.scale)
    if not scale_fits(scale, storage_type).all():
        raise CheckpointError(
            f"{name}: {storage_type} does not hold the scales exactly (least {scale.min():.3g}); "
            f"quantize with dtype='{'bfloat16' if storage_type == 'float16' else 'float32'}' (--dtype)"
        )
    scale = scale.astype(numpy_type(storage_type)).reshape(_scale_shape(qtensor.shape, scheme))
    codes = to_numpy(qtensor.codes)
    if not isinstance(scheme.format, Int):
        return {"weight": codes.view(numpy_type("float8_e4m3fn")), "weight_scale": scale}
    patterns = scheme.format.to_unsigned(codes)
    encoded = {
        "weight_packed": _to_words(patterns, scheme.format.bits),
        "weight_scale": scale,
        "weight_shape": np.asarray(qtensor.shape, dtype=np.int64),
    }
    if qtensor.zero_point is not None:
        zero = to_numpy(qtensor.zero_point)
        if isinstance(scheme.granularity, PerTensor):
            encoded["weight_zero_point"] = zero.reshape(1)
        else:
            packed = _to_words(scheme.format.to_unsigned(zero).T, scheme.format.bits)
            encoded["weight_zero_point"] = np.ascontiguousarray(packed.T)
    return encoded


def _decoded(tensors: Mapping[str, np.ndarray[Any, Any]], scheme: Scheme) -> QTensor:
    """Undo `_encoded`."""
    number_format, stored = scheme.format, tensors["weight_scale"]
    if not isinstance(number_format, Int):
        codes = np.ascontiguousarray(tensors["weight"]).view(np.uint8)
        scale = stored.astype(np.float32).reshape(scale_shape(codes.shape, scheme))
        return QTensor(codes=codes, scale=scale, zero_point=None, scheme=scheme)
    out, width = (int(size) for size in tensors["weight_shape"])
    shape = scale_shape((out, width), scheme)
    codes = number_format.from_unsigned(_from_words(tensors["weight_packed"], number_format.bits, width))
    zero = tensors.get("weight_zero_point")
    if zero is not None and zero.dtype == np.int32:
        zero = number_format.from_unsigned(_from_words(np.ascontiguousarray(zero.T), number_format.bits, out)).T
    return QTensor(
        codes=codes,
        scale=stored.astype(np.float32).reshape(shape),
        zero_point=None if zero is None else np.ascontiguousarray(zero).reshape(shape),
        scheme=scheme,
    )


def _words(length: int, bits: int) -> int:
    return -(-length * bits // 32)


def _to_words(patterns: np.ndarray[Any, Any], bits: int) -> np.ndarray[Any, Any]:
    """Return unsigned codes (rows, n) as little-endian int32 words (rows, ceil(n * bits / 32))."""
    packed = pack(patterns, bits)
    filled = np.zeros((packed.shape[0], 4 * _words(patterns.shape[1], bits)), dtype=np.uint8)
    filled[:, : packed.shape[1]] = packed
    return filled.view("<i4")


def _from_words(words: np.ndarray[Any, Any], bits: int, length: int) -> np.ndarray[Any, Any]:
    return np.asarray(unpack(np.ascontiguousarray(words).view(np.uint8), bits, length))


def _scale_shape(shape: tuple[int, ...], scheme: Scheme) -> tuple[int, ...]:
    return (1,) if isinstance(scheme.granularity, PerTensor) else scale_shape(shape, scheme)


def _zero_point_as_stored(name: str, shape: tuple[int, int], scheme: Scheme) -> StoredTensor:
    if isinstance(scheme.granularity, PerTensor):
        return StoredTensor(f"{name}.weight_zero_point", "int8", (1,))
    groups = scale_shape(shape, scheme)[1]
    return StoredTensor(f"{name}.weight_zero_point", "int32", (_words(shape[0], scheme.format.bits), groups))


def _configuration(path: Path) -> dict[str, Any]:
    file = path / "config.json"
    try:
        configuration = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path} is not a model folder: {file.name} cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise CheckpointError(f"{file} is not valid JSON: {error}") from error
    quantization = configuration.get("quantization_config") if isinstance(configuration, dict) else None
    if not isinstance(quantization, dict) or quantization.get("quant_method") != "compressed-tensors":
        raise CheckpointError(f"{file} does not describe a compressed-tensors checkpoint")
    return dict(configuration)


def _read(files: list[Path], schemes: Mapping[str, Scheme]) -> Iterator[tuple[str, Array | QTensor]]:
    waiting: dict[str, dict[str, np.ndarray[Any, Any]]] = {}
    for file in files:
        for full_name, array in read_tensors(file):
            name, _, suffix = full_name.rpartition(".")
            if name not in schemes or suffix not in _SUFFIXES:
                yield full_name, array
                continue
            waiting.setdefault(name, {})[suffix] = array
    for name, tensors in waiting.items():
        yield name, _checked(name, tensors, schemes[name])


def _checked(name: str, tensors: Mapping[str, np.ndarray[Any, Any]], scheme: Scheme) -> QTensor:
    try:
        return _decoded(tensors, scheme)
    except ValueError as error:
        raise CheckpointError(f"{name}: its tensors do not fit together under {scheme}: {error}") from error
