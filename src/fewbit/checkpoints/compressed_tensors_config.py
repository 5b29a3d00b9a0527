"""The `quantization_config` of compressed-tensors: written from a manifest, read into a scheme for each layer.

A group a scheme; targets are the class `Linear` where one scheme covers all, else layer names. Precedence when reading
is that of compressed-tensors: exact name, then `re:` pattern, then class. Source: `QuantizationConfig`, version 0.20.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from fewbit.errors import CheckpointError, NotYetError
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import E4M3
from fewbit.formats.number_format import NumberFormat
from fewbit.interfaces import Layer, Manifest, StoredTensor
from fewbit.schemes.granularity import Granularity, PerChannel, PerGroup, PerTensor
from fewbit.schemes.scheme import Scheme

#: Version of the layout that is written.
VERSION = "0.19.0"


def write_config(manifest: Manifest) -> dict[str, Any]:
    """Return the `quantization_config` of `config.json`: a group for each scheme, layers by class or by name."""
    by_scheme: dict[Scheme, list[Layer]] = {}
    for quantized in manifest.quantized:
        by_scheme.setdefault(quantized.scheme, []).append(quantized.layer)
    simple = len(by_scheme) == 1 and all(q.layer.module_class == "Linear" for q in manifest.quantized)
    groups = {}
    for number, (scheme, layers) in enumerate(by_scheme.items()):
        groups[f"group_{number}"] = {
            "targets": ["Linear"] if simple else [layer.name for layer in layers],
            "format": _format_word(scheme.format),
            "weights": _weights_entry(scheme),
            "input_activations": None,
            "output_activations": None,
        }
    words = {group["format"] for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        "version": VERSION,
        "format": words.pop() if len(words) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [layer.name for layer in manifest.kept if layer.module_class == "Linear"],
        "kv_cache_scheme": None,
        "global_compression_ratio": None,
    }


def _format_word(number_format: NumberFormat) -> str:
    return "pack-quantized" if isinstance(number_format, Int) else "naive-quantized"


def _weights_entry(scheme: Scheme) -> dict[str, Any]:
    granularity = scheme.granularity
    return {
        "num_bits": scheme.format.bits,
        "type": "int" if isinstance(scheme.format, Int) else "float",
        "symmetric": scheme.symmetric,
        "strategy": "group" if isinstance(granularity, PerGroup) else granularity.name,
        "group_size": granularity.size if isinstance(granularity, PerGroup) else None,
        "dynamic": False,
        "observer": "memoryless_minmax",
        "observer_kwargs": {},
    }


def read_schemes(quantization: Mapping[str, Any], stored: Mapping[str, StoredTensor]) -> dict[str, Scheme]:
    """Return the scheme of each layer that has a `weight_scale` among the `stored` tensors.

    Raises:
        CheckpointError: a layer that no group targets, or that lacks a tensor its scheme needs.
        NotYetError: quantized activations or caches, and number formats of later versions.

    """
    if quantization.get("kv_cache_scheme"):
        raise NotYetError("the checkpoint quantizes its key/value cache, which this version does not read")
    groups = quantization.get("config_groups")
    if not isinstance(groups, dict) or not groups:
        raise CheckpointError("quantization_config has no config_groups")
    scaled = [name.removesuffix(".weight_scale") for name in stored if name.endswith(".weight_scale")]
    schemes = {}
    for name in scaled:
        group = _group_of(name, groups)
        scheme = _scheme(group, name)
        schemes[name] = scheme.stored_as(stored[f"{name}.weight_scale"].dtype)  # type: ignore[arg-type]
        _require_complete(name, schemes[name], stored)
    return schemes


def _group_of(name: str, groups: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the group whose targets name the layer exactly, else by `re:` pattern, else by class."""
    by_class = None
    by_pattern = None
    for group in groups.values():
        for target in group.get("targets", []):
            if target == name:
                return dict(group)
            if target.startswith("re:") and re.match(target[3:], name):
                by_pattern = by_pattern or group
            elif target == "Linear":
                by_class = by_class or group
    found = by_pattern or by_class
    if found is None:
        raise CheckpointError(f"{name} has a weight_scale, but no config group targets it")
    return dict(found)


def _scheme(group: Mapping[str, Any], name: str) -> Scheme:
    for key in ("input_activations", "output_activations"):
        if group.get(key):
            raise NotYetError(f"{name} has quantized {key}, which this version does not read")
    weights = group.get("weights") or {}
    bits, kind, strategy = weights.get("num_bits"), weights.get("type"), weights.get("strategy")
    granularities: dict[str, Granularity] = {"tensor": PerTensor(), "channel": PerChannel()}
    if strategy == "group" and isinstance(weights.get("group_size"), int):
        granularities["group"] = PerGroup(weights["group_size"])
    known = kind == "int" and isinstance(bits, int) and 1 <= bits <= 8
    if strategy not in granularities or not (known or (kind, bits) == ("float", 8)):
        raise NotYetError(f"{name}: weights of {bits}-bit {kind} by {strategy} are not read by this version")
    return Scheme(
        format=Int(int(bits or 8)) if kind == "int" else E4M3,
        granularity=granularities[strategy],
        symmetric=bool(weights.get("symmetric", True)),
    )


def _require_complete(name: str, scheme: Scheme, stored: Mapping[str, StoredTensor]) -> None:
    needed = ["weight"] if not isinstance(scheme.format, Int) else ["weight_packed", "weight_shape"]
    needed += [] if scheme.symmetric else ["weight_zero_point"]
    for suffix in needed:
        if f"{name}.{suffix}" not in stored:
            raise CheckpointError(f"{name}.{suffix} is missing; {scheme} needs it")
