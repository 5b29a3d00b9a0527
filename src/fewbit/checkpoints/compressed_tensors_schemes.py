"""The `quantization_config` of compressed-tensors, read into a scheme for each layer; contradictions are refused.

Precedence is that of compressed-tensors: exact name, then `re:` pattern, then class. Source: `QuantizationConfig`,
version 0.20.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewbit.errors import CheckpointError, NotYetError, SchemeError
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import E4M3
from fewbit.interfaces import StoredTensor
from fewbit.schemes.granularity import Granularity, PerChannel, PerGroup, PerTensor
from fewbit.schemes.scheme import Scheme

_PATTERN = "re:"
#: Layouts that are read, and the type of weights that each holds.
_FORMATS = {"pack-quantized": "int", "naive-quantized": "float", "float-quantized": "float"}
_MIXED = "mixed-precision"
#: Keys of the file that change what a model computes, with the values under which they do not.
_IDLE: dict[str, tuple[Any, ...]] = {
    "kv_cache_scheme": (None, {}),
    "transform_config": (None, {}),
    "sparsity_config": (None, {}, {"format": "dense"}),
    "quantization_status": (None, "compressed"),
}


@dataclass(frozen=True, slots=True)
class _Targets:
    """Names of layers and classes, and patterns of names."""

    names: frozenset[str]
    patterns: tuple[re.Pattern[str], ...]

    @classmethod
    def read(cls, value: Any, what: str) -> _Targets:
        """Return what a list of the file says; `what` names it in errors."""
        value = [] if value is None else value
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise CheckpointError(f"{what} is not a list of names: {value!r:.80}")
        try:
            patterns = tuple(re.compile(text.removeprefix(_PATTERN)) for text in value if text.startswith(_PATTERN))
        except (re.error, OverflowError, RecursionError) as error:
            raise CheckpointError(f"{what} holds a pattern that is no regular expression: {error}") from error
        return cls(frozenset(value), patterns)

    def match(self, name: str) -> bool:
        """Whether a pattern speaks of `name`."""
        return any(pattern.match(name) for pattern in self.patterns)


@dataclass(frozen=True, slots=True)
class _Group:
    """A config group whose parts have the types that they should have."""

    name: str
    targets: _Targets
    #: Layout of the weights; `None` where the file does not say.
    layout: str | None
    weights: Mapping[str, Any]
    #: Names of what else it quantizes: inputs, outputs.
    others: tuple[str, ...]


def read_schemes(quantization: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> dict[str, Scheme]:
    """Return the scheme of each layer that has a `weight_scale` among the `stored` tensors.

    Raises:
        CheckpointError: a layer that no group targets or that lacks a tensor its scheme needs, groups that are none.
        NotYetError: quantized activations or caches, transforms, and layouts of later versions.

    """
    for key, idle in _IDLE.items():
        if quantization.get(key) not in idle:
            raise NotYetError(
                f"quantization_config has {key} = {quantization[key]!r:.80}, which this version does not read"
            )
    groups = _groups(quantization)
    ignored = _Targets.read(quantization.get("ignore"), "`ignore` of quantization_config")
    schemes = {}
    for name in [name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")]:
        if name in ignored.names or ignored.match(name):
            raise CheckpointError(f"{name} has a weight_scale, but `ignore` of quantization_config names it")
        scheme = _scheme(_group_of(name, groups), name, stored[f"{name}.weight_scale"].dtype)
        _require_complete(name, scheme, stored)
        schemes[name] = scheme
    _require_scaled(schemes, stored)
    return schemes


def _groups(quantization: Mapping[str, Any]) -> list[_Group]:
    tables = quantization.get("config_groups")
    if not isinstance(tables, dict) or not tables:
        raise CheckpointError("quantization_config has no config_groups")
    return [_group(name, table, quantization.get("format")) for name, table in tables.items()]


def _group(name: str, table: Any, common: Any) -> _Group:
    where = f"config group {name!r:.80}"
    if not isinstance(table, dict):
        raise CheckpointError(f"{where} is no object but {table!r:.80}")
    targets = _Targets.read(table.get("targets"), f"targets of {where}")
    weights = table.get("weights") or {}
    if not isinstance(weights, dict):
        raise CheckpointError(f"weights of {where} are no object but {weights!r:.80}")
    layout = table.get("format") or (common if common != _MIXED else None)
    if layout is not None and layout not in _FORMATS:
        raise NotYetError(f"{where} has the format {layout!r:.80}; the formats that are read are {', '.join(_FORMATS)}")
    if layout is not None and weights.get("type", "int") != _FORMATS[layout]:
        raise CheckpointError(f"{where} contradicts itself: {layout} holds no weights of type {weights['type']!r:.80}")
    others = tuple(key for key in ("input_activations", "output_activations") if table.get(key))
    return _Group(name, targets, layout, weights, others)


def _group_of(name: str, groups: list[_Group]) -> _Group:
    """Return the group whose targets name the layer exactly, else by `re:` pattern, else by class."""
    ranked = (
        next((group for group in groups if name in group.targets.names), None)
        or next((group for group in groups if group.targets.match(name)), None)
        or next((group for group in groups if "Linear" in group.targets.names), None)
    )
    if ranked is None:
        raise CheckpointError(f"{name} has a weight_scale, but no config group targets it")
    return ranked


def _scheme(group: _Group, name: str, scale_type: str) -> Scheme:
    for key in group.others:
        raise NotYetError(f"{name} has quantized {key}, which this version does not read")
    weights = group.weights
    bits, kind, strategy = weights.get("num_bits"), weights.get("type", "int"), weights.get("strategy")
    granularities: dict[str, Granularity] = {"tensor": PerTensor(), "channel": PerChannel()}
    size, symmetric = weights.get("group_size"), weights.get("symmetric", True)
    if strategy == "group" and type(size) is int and size > 0:
        granularities["group"] = PerGroup(size)
    known = kind == "int" and type(bits) is int and 1 <= bits <= 8
    if strategy not in tuple(granularities) or not (known or (kind, bits) == ("float", 8)):
        raise NotYetError(
            f"{name}: weights of {bits!r:.40}-bit {kind!r:.40} by {strategy!r:.40} (group size {size!r:.40}) "
            "are not read by this version"
        )
    if weights.get("dynamic") or weights.get("actorder") in ("group", "dynamic"):
        raise NotYetError(f"{name}: dynamic weights and columns grouped by activation are not read by this version")
    if not isinstance(symmetric, bool):
        raise CheckpointError(f"{name}: symmetric = {symmetric!r:.40} is not true or false")
    try:
        return Scheme(
            format=Int(bits) if known else E4M3,  # type: ignore[arg-type]
            granularity=granularities[strategy],
            symmetric=symmetric,
            scale_type=scale_type,  # type: ignore[arg-type]
        )
    except SchemeError as error:
        raise CheckpointError(f"{name}: {error}") from error


def _require_complete(name: str, scheme: Scheme, stored: Mapping[str, StoredTensor]) -> None:
    needed = ["weight"] if not isinstance(scheme.format, Int) else ["weight_packed", "weight_shape"]
    needed += [] if scheme.symmetric else ["weight_zero_point"]
    for suffix in needed:
        if f"{name}.{suffix}" not in stored:
            raise CheckpointError(f"{name}.{suffix} is missing; {scheme} needs it")


def _require_scaled(schemes: Mapping[str, Scheme], stored: Mapping[str, StoredTensor]) -> None:
    """Raise for parts of quantized layers that have no scale: loaded as numbers they would be wrong in silence."""
    for full_name, tensor in stored.items():
        name, _, suffix = full_name.rpartition(".")
        part = suffix in ("weight_packed", "weight_zero_point", "weight_shape") or tensor.dtype.startswith("float8")
        if part and name not in schemes:
            raise CheckpointError(f"{full_name} is part of a quantized weight, but {name}.weight_scale is missing")
