"""Casts in a compressed-tensors folder: weights are plain tensors of their type, as any reader takes float weights.

The layout has no word for them, so `fewbit_casts` in config.json names the layers and says what their inputs are cast
to. Other readers pass over it: they load the weights as they are and cast inputs only where the whole model is cast.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod
from typing import Any

import numpy as np

from fewbit.checkpoints.safetensors_file import numpy_type
from fewbit.errors import CheckpointError
from fewbit.formats.cast import Cast
from fewbit.interfaces import QuantizedLayer, StoredTensor
from fewbit.numerics.namespace import to_numpy
from fewbit.qtensor import QTensor, unit_scale
from fewbit.schemes.casts import CASTS
from fewbit.schemes.notation import input_scheme_to_text, parse_scheme
from fewbit.schemes.scheme import Scheme

#: The key in config.json: a list of {"weight": "fp16", "input": "fp16" or null, "layers": [...]}.
KEY = "fewbit_casts"
#: Modules whose weight is a matrix, or becomes one by joining its last axes.
_CLASSES = ("Linear", "Embedding", "Conv1d", "Conv2d", "Conv3d")


def cast_problem(quantized: QuantizedLayer) -> str | None:
    """Return why a layer whose weight is cast cannot stand in a folder so, or `None`."""
    if quantized.layer.module_class not in _CLASSES:
        return (
            f"fewbit writes casts of {', '.join(_CLASSES)}, and this one is of class "
            f"{quantized.layer.module_class}; keep it, or save the module's state_dict instead"
        )
    for name, scheme in {"input": quantized.input, "output": quantized.output}.items():
        if scheme and (name == "output" or scheme.scaled):
            return (
                f"a folder has no place for the {name} '{input_scheme_to_text(scheme)}' beside a weight in "
                f"{quantized.scheme}; leave out `{name}`, or save the module's state_dict"
            )
    return None


def stored_cast(quantized: QuantizedLayer) -> StoredTensor:
    """Return what stands in the file for a weight that is cast."""
    layer = quantized.layer
    return StoredTensor(f"{layer.name}.weight", _cast_of(quantized.scheme).dtype, layer.stored or layer.shape)


def encoded_cast(qtensor: QTensor, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Return the weight as an array of its type, in the shape that the module has it in."""
    cast = _cast_of(qtensor.scheme)
    patterns = np.ascontiguousarray(to_numpy(qtensor.codes))
    numbers: np.ndarray[Any, Any] = patterns.view(numpy_type(cast.dtype)).reshape(shape)
    return numbers


def decoded_cast(name: str, array: np.ndarray[Any, Any], scheme: Scheme) -> QTensor:
    """Undo `encoded_cast`.

    Raises:
        CheckpointError: numbers that are none, or too few axes.

    """
    if array.ndim < 2 or not array.size:
        raise CheckpointError(f"{name}.weight has shape {list(array.shape)}, which is not that of a weight")
    bad = int((~np.isfinite(array.astype(np.float32))).sum())
    if bad:
        raise CheckpointError(f"{name}: {bad} of {array.size} weights are NaN or infinite; the file is damaged")
    shape = (array.shape[0], prod(array.shape[1:]))
    codes = np.ascontiguousarray(array).view(np.uint16).reshape(shape)
    return QTensor(codes=codes, scale=unit_scale(shape, codes), zero_point=None, scheme=scheme)


def written_casts(layers: Iterable[QuantizedLayer]) -> list[dict[str, Any]]:
    """Return what config.json says of these layers, those of a kind together."""
    alike: dict[tuple[str, str | None], list[str]] = {}
    for quantized in layers:
        key = str(quantized.scheme), str(quantized.input) if quantized.input else None
        alike.setdefault(key, []).append(quantized.layer.name)
    return [{"weight": weight, "input": given, "layers": names} for (weight, given), names in alike.items()]


def read_casts(
    configuration: Mapping[str, Any], stored: Mapping[str, StoredTensor]
) -> dict[str, tuple[Scheme, Scheme | None]]:
    """Return the schemes of weight and input of each layer that config.json names.

    Raises:
        CheckpointError: an entry that is none, a layer named twice, or a weight of another type.

    """
    entries = configuration.get(KEY, [])
    if not isinstance(entries, list):
        raise CheckpointError(f"{KEY} of config.json is no list but {entries!r:.80}")
    found: dict[str, tuple[Scheme, Scheme | None]] = {}
    for entry in entries:
        weight, given = _schemes(entry)
        for name in entry["layers"]:
            tensor = stored.get(f"{name}.weight")
            if name in found:
                raise CheckpointError(f"{KEY} of config.json names {name!r:.80} twice")
            if tensor is None or tensor.dtype != _cast_of(weight).dtype:
                there = f"is {tensor.dtype}" if tensor else "is missing"
                raise CheckpointError(f"{name!r:.80}: its weight {there}; {KEY} of config.json says {weight}")
            found[name] = weight, given
    return found


def _schemes(entry: Any) -> tuple[Scheme, Scheme | None]:
    """Return what an entry says of weight and input; raise unless its parts are what they should be."""
    if not isinstance(entry, dict):
        raise CheckpointError(f"an entry of {KEY} of config.json is no object but {entry!r:.80}")
    names, weight, given = entry.get("layers"), entry.get("weight"), entry.get("input")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CheckpointError(f"the layers of {KEY} of config.json are no list of names but {names!r:.80}")
    for word in (weight, *([] if given is None else [given])):
        if not isinstance(word, str) or word not in CASTS:
            raise CheckpointError(f"{KEY} of config.json knows {', '.join(CASTS)}, not {word!r:.80}")
    return parse_scheme(str(weight)), None if given is None else parse_scheme(given)


def _cast_of(scheme: Scheme) -> Cast:
    assert isinstance(scheme.format, Cast)  # callers ask `scheme.scaled` first
    return scheme.format
