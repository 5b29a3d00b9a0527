"""The angles of positions: base, width and scaling as metadata of GGUF, and back; factors that are tensors.

Llama 3 divides each frequency by a factor of its own, `rope_freqs.weight`: 1 for short waves, `factor` for long ones,
and 1 / ((1 - s) / factor + s) between, s = (context / wave - low) / (high - low). Source: llama.cpp,
conversion/llama.py and conversion/phi.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from fewbit.checkpoints.gguf.architecture import Architecture
from fewbit.errors import CheckpointError, NotYetError

_Floats = np.ndarray[Any, Any]
#: What a kind of scaling may say of itself.
_LLAMA3 = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
_KNOWN = {
    "default": (),
    "linear": ("factor",),
    "yarn": ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow"),
    "llama3": _LLAMA3,
    "longrope": ("long_factor", "short_factor", "original_max_position_embeddings", "factor"),
}


def rope_values(architecture: Architecture, configuration: Mapping[str, Any], head: int) -> dict[str, Any]:
    """Return the keys, without the name of the architecture.

    Raises:
        CheckpointError: a scaling that llama.cpp does not compute.

    """
    rope = _parameters(architecture, configuration)
    kind = str(rope["rope_type"])
    partial = float(rope.get("partial_rotary_factor") or configuration.get("partial_rotary_factor") or 1.0)
    values: dict[str, Any] = {"rope.freq_base": float(rope.get("rope_theta") or 10000.0)}
    if architecture.name in ("llama", "phi3"):
        values["rope.dimension_count"] = int(head * partial)
    elif partial != 1.0:
        raise CheckpointError(f"partial_rotary_factor = {partial} has no key in GGUF for {architecture.name}")
    if kind in ("linear", "yarn"):
        values |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
    if kind == "yarn":
        values["rope.scaling.original_context_length"] = int(rope["original_max_position_embeddings"])
        for ours, theirs in (("beta_fast", "yarn_beta_fast"), ("beta_slow", "yarn_beta_slow")):
            values |= {f"rope.scaling.{theirs}": float(rope[ours])} if rope.get(ours) is not None else {}
    if kind == "longrope":
        original = _original_context(configuration, rope)
        scale = configuration["max_position_embeddings"] / original
        grown = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        values |= {"rope.scaling.original_context_length": original, "rope.scaling.attn_factor": grown}
    return values


def factor_tensors(architecture: Architecture, configuration: Mapping[str, Any]) -> dict[str, _Floats]:
    """Return the tensors that divide the frequencies, float32 (half the rotated width,), by name."""
    if architecture.name == "gpt2":
        return {}
    rope = _parameters(architecture, configuration)
    if rope["rope_type"] == "longrope":
        return {
            f"rope_factors_{length}.weight": np.asarray(rope[f"{length}_factor"], np.float32)
            for length in ("long", "short")
        }
    if rope["rope_type"] != "llama3":
        return {}
    head = int(configuration.get("head_dim") or configuration["hidden_size"] // configuration["num_attention_heads"])
    return {"rope_freqs.weight": _llama3_factors(rope, head)}


def angles_of(
    architecture: Architecture, values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]
) -> dict[str, Any]:
    """Return `rope_parameters` for a configuration.

    Raises:
        NotYetError: factors that no configuration tells.

    """
    own = {key.removeprefix(f"{architecture.name}.rope."): value for key, value in values.items()}
    for name in ("rope_freqs.weight", "rope_factors_long.weight"):
        if name in shapes:
            raise NotYetError(
                f"scales its positions by {name}, which no configuration of transformers is worked out of; load the "
                "folder that it was made from"
            )
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": _positive(own, "freq_base", 10000.0)}
    kind = own.get("scaling.type", "none")
    if kind in ("linear", "yarn"):
        rope |= {"rope_type": kind, "factor": _positive(own, "scaling.factor")}
        if kind == "yarn":
            rope["original_max_position_embeddings"] = int(_positive(own, "scaling.original_context_length"))
    elif kind != "none":
        raise NotYetError(f"scales its positions by {kind!r:.40}, which is not read")
    if architecture.name == "gemma3":
        near = {"rope_type": "default", "rope_theta": 10000.0}
        return {"rope_parameters": {"full_attention": rope, "sliding_attention": near}}
    return {"rope_parameters": rope}


def _positive(values: Mapping[str, Any], key: str, usual: float | None = None) -> float:
    """Return a number above 0 out of the metadata of a file; raise `CheckpointError` for anything else."""
    value = values.get(key, usual)
    # Lengths of arrays are ints, and no numbers of the file.
    if type(value) not in (int, float) or not 0 < value <= float(np.finfo(np.float32).max):
        raise CheckpointError(f"has rope.{key} = {value!r:.40}, which has to be a number above 0; the file is damaged")
    return float(value)


def _parameters(architecture: Architecture, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return the scaling of positions in the form of transformers 5, whatever version wrote it."""
    rope = configuration.get("rope_parameters") or {
        "rope_theta": configuration.get("rope_theta"),
        **(configuration.get("rope_scaling") or {}),
    }
    if architecture.name == "gemma3" and "full_attention" in rope:
        near = rope.get("sliding_attention") or {}
        if near.get("rope_type", "default") != "default" or near.get("rope_theta", 10000.0) != 10000.0:
            raise CheckpointError(
                f"layers of local attention have rope_theta {near.get('rope_theta')!r}, in GGUF always 10000"
            )
        rope = rope["full_attention"]
    kind = rope.get("rope_type") or rope.get("type") or "default"
    known = {"longrope": ("phi3",), "llama3": ("llama",)}.get(str(kind), (architecture.name,))
    if kind not in _KNOWN or architecture.name not in known:
        raise CheckpointError(f"positions scaled by {kind!r:.40} have no form in GGUF for {architecture.name}")
    usual = {"rope_theta", "rope_type", "type", "partial_rotary_factor", *_KNOWN[kind]}
    for key, value in rope.items():
        if key not in usual and value is not None:
            raise CheckpointError(f"positions scaled by {kind} with {key} = {value!r:.40} have no form in GGUF")
    return {**rope, "rope_type": kind}


def _original_context(configuration: Mapping[str, Any], rope: Mapping[str, Any]) -> int:
    own = rope.get("original_max_position_embeddings") or configuration.get("original_max_position_embeddings")
    return int(own or configuration["max_position_embeddings"])


def _llama3_factors(rope: Mapping[str, Any], head: int) -> _Floats:
    factor, low, high, context = (float(rope[key]) for key in _LLAMA3)
    waves = 2 * math.pi * float(rope.get("rope_theta") or 10000.0) ** (np.arange(0, head, 2, dtype=np.float64) / head)
    smooth = np.clip((context / waves - low) / (high - low), 0.0, 1.0)
    return (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
