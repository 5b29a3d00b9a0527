"""The `quantization_config` of compressed-tensors, read into the form of each layer; contradictions are refused.

Precedence is that of compressed-tensors: exact name, then `re:` pattern, then class. Source: `QuantizationConfig`,
version 0.20.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fewbit.checkpoints.compressed_tensors_blocks import BLOCKS, GLOBAL_SCALE, stored_blocks
from fewbit.checkpoints.compressed_tensors_form import FORMS, PACKED, Form, entry, groups_said, read_entry
from fewbit.checkpoints.compressed_tensors_inputs import read_input, require_input
from fewbit.checkpoints.json_object import require_idle
from fewbit.errors import CheckpointError, NotYetError
from fewbit.formats.integer import Int
from fewbit.interfaces import StoredTensor
from fewbit.name_pattern import NamePattern
from fewbit.schemes.granularity import Granularity, PerChannel, PerTensor
from fewbit.schemes.scheme import Scheme

_PATTERN = "re:"
_MIXED = "mixed-precision"
#: What has no meaning without a `weight_scale`.
_PARTS = ("weight_packed", "weight_zero_point", "weight_shape", GLOBAL_SCALE)
#: Keys of the file that change what a model computes, with the values under which they do not.
_IDLE: dict[str, tuple[Any, ...]] = {
    "transform_config": (None, {}),
    "sparsity_config": (None, {}, {"format": "dense"}),
    "quantization_status": (None, "compressed"),
}


@dataclass(frozen=True, slots=True)
class _Targets:
    """Names of layers and classes, and patterns of names."""

    names: frozenset[str]
    patterns: tuple[NamePattern, ...]

    @classmethod
    def read(cls, value: Any, what: str) -> _Targets:
        """Return what a list of the file says; `what` names it in errors."""
        value = [] if value is None else value
        if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
            raise CheckpointError(f"{what} is not a list of names: {value!r:.80}")
        texts = [text.removeprefix(_PATTERN) for text in value if text.startswith(_PATTERN)]
        subject = f"{what} holds a pattern that"
        return cls(frozenset(value), tuple(NamePattern.of(text, subject, CheckpointError) for text in texts))

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
    #: Empty where inputs stay float.
    inputs: Mapping[str, Any]
    #: Whether it rounds outputs.
    outputs: bool


def read_forms(quantization: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> dict[str, Form]:
    """Return the form of each layer that has a `weight_scale` among the `stored` tensors.

    Raises:
        CheckpointError: a layer that no group targets or that lacks a tensor its form needs, groups that are none.
        NotYetError: quantized outputs or caches, transforms, and layouts of later versions.

    """
    require_idle(quantization, _IDLE, "quantization_config")
    groups = _groups(quantization)
    ignored = _Targets.read(quantization.get("ignore"), "`ignore` of quantization_config")
    forms = {}
    for name in [name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")]:
        if name in ignored.names or ignored.match(name):
            raise CheckpointError(f"{name} has a weight_scale, but `ignore` of quantization_config names it")
        forms[name] = _form(_group_of(name, groups), name, stored)
        _require_complete(name, forms[name], stored)
    _require_scaled(forms, stored)
    return forms


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
    weights, inputs = table.get("weights") or {}, table.get("input_activations") or {}
    for key, said in {"weights": weights, "input_activations": inputs}.items():
        if not isinstance(said, dict):
            raise CheckpointError(f"{key} of {where} are no object but {said!r:.80}")
    layout = table.get("format") or (common if common != _MIXED else None)
    if layout is not None and layout not in tuple(FORMS):
        raise NotYetError(f"{where} has the format {layout!r:.80}; the formats that are read are {', '.join(FORMS)}")
    if layout is not None and weights.get("type", "int") != FORMS[layout]:
        raise CheckpointError(
            f"{where} contradicts itself: {layout} holds no weights of type {weights.get('type')!r:.80}"
        )
    return _Group(name, targets, layout, weights, inputs, bool(table.get("output_activations")))


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


def _form(group: _Group, name: str, stored: Mapping[str, StoredTensor]) -> Form:
    if group.outputs:
        raise NotYetError(f"{name} has quantized output_activations, which this version does not read")
    kind = stored[f"{name}.weight_scale"].dtype
    blocks = _blocks(group, kind)
    scheme = BLOCKS[blocks] if blocks else _scheme(group.weights, name, kind)
    scale = stored.get(f"{name}.input_scale")
    given = read_input(group.inputs, name, scale.dtype if scale else "float32") if group.inputs else None
    if blocks:
        return Form(scheme, given, blocks)
    packed = group.layout == PACKED if group.layout else f"{name}.weight_packed" in stored
    if packed and isinstance(scheme.format, Int):
        return Form(scheme, given, PACKED)
    return Form(scheme, given, "int-quantized" if isinstance(scheme.format, Int) else "naive-quantized")


def _blocks(group: _Group, scale_type: str) -> str | None:
    """Return the layout in which scales are codes that a group says, or, without a word, what it says of weights.

    Raises:
        CheckpointError: a layout that contradicts what is said of weights.

    """
    if group.layout is not None and group.layout not in BLOCKS:
        return None
    for word, scheme in BLOCKS.items():
        # Without these two other readers take int8.
        usual = {**entry(scheme), "num_bits": None, "type": None}
        said = {key: group.weights.get(key, value) for key, value in usual.items()}
        fits = said == entry(scheme) and scale_type in ("uint8", "float8_e4m3fn")
        if word == group.layout and (not fits or group.weights.get("dynamic")):
            raise CheckpointError(f"config group {group.name!r:.80} contradicts itself: {word} holds {scheme} only")
        if fits and group.layout in (None, word):
            return word
    return None


def _scheme(weights: Mapping[str, Any], name: str, scale_type: str) -> Scheme:
    if weights.get("dynamic") or weights.get("actorder") in ("group", "dynamic"):
        raise NotYetError(f"{name}: dynamic weights and columns grouped by activation are not read by this version")
    granularities: dict[str, Granularity] = {"tensor": PerTensor(), "channel": PerChannel(), **groups_said(weights)}
    # Bits that are not said are 8 to the runtime, of a cache or an input; of weights more likely lost.
    return read_entry({"num_bits": None, **weights}, granularities, name, scale_type=scale_type)


def _require_complete(name: str, form: Form, stored: Mapping[str, StoredTensor]) -> None:
    needed = ["weight_packed", "weight_shape"] if form.packed else ["weight"]
    if form.blocks:
        needed = [part.name.rpartition(".")[2] for part in stored_blocks(name, (1, 1), form.scheme)]
    needed += [] if form.scheme.symmetric else ["weight_zero_point"]
    for suffix in needed:
        if f"{name}.{suffix}" not in stored:
            raise CheckpointError(f"{name}.{suffix} is missing; {form.scheme} needs it")
    require_input(name, form.input, stored)


def _require_scaled(forms: Mapping[str, Form], stored: Mapping[str, StoredTensor]) -> None:
    """Raise for parts of quantized layers that have no scale: loaded as numbers they would be wrong in silence."""
    for full_name, tensor in stored.items():
        name, _, suffix = full_name.rpartition(".")
        part = suffix in _PARTS or tensor.dtype.startswith("float8")
        if part and name not in forms:
            raise CheckpointError(f"{full_name} is part of a quantized weight, but {name}.weight_scale is missing")
