"""The configuration of a model as metadata of a GGUF file, and back.

A value is an int, float, bool, text, or a list of one of them; what type it has in the file follows from it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from fewbit.checkpoints.gguf.architecture import ARCHITECTURES, Architecture
from fewbit.checkpoints.gguf.rope import angles_of, rope_values
from fewbit.checkpoints.gguf_header import ArrayLength, GgufHeader
from fewbit.errors import CheckpointError, NotYetError

#: Version of the layouts of quantized blocks.
QUANTIZATION_VERSION = 2
#: What of a configuration is no count.
_FRACTIONS = ("rms_norm_eps", "layer_norm_epsilon", "attn_logit_softcapping", "final_logit_softcapping")
_LARGEST = float(np.finfo(np.float32).max)
#: Ids of special tokens in a configuration by their keys in a file.
_SPECIAL = {
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
}


def model_values(architecture: Architecture, configuration: Mapping[str, Any]) -> dict[str, Any]:
    """Return what llama.cpp has to know of a model, by key.

    Raises:
        CheckpointError: a configuration that lacks a size, or scales its positions in a way of its own.

    """
    values: dict[str, Any] = {}
    for key, name in architecture.keys.items():
        value = configuration.get(key)
        if value is None and key == "n_inner":
            value = 4 * int(configuration["n_embd"])
        if value is not None:
            values[name] = value
    for name in ("context_length", "embedding_length", "block_count", "attention.head_count"):
        if not isinstance(values.get(name), int):
            raise CheckpointError(f"config.json gives no {name} ({values.get(name)!r:.40}); GGUF needs it")
    head = _head_width(architecture, configuration)
    if architecture.name == "phi3":
        values.setdefault("attention.sliding_window", 0)  # none, which has to be said
    if "attention.key_length" in values:
        values["attention.value_length"] = values["attention.key_length"]
    if architecture.name == "gpt2":
        return _named(architecture, values)
    if architecture.name == "llama":
        values["vocab_size"] = int(configuration["vocab_size"])
    _require_usual_scale(architecture, configuration, head)
    values |= rope_values(architecture, configuration, head)
    return _named(architecture, values)


def configuration_of(header: GgufHeader) -> dict[str, Any]:
    """Return the content of a `config.json` of transformers for the model in a GGUF file.

    Raises:
        NotYetError: a family, or a way to scale positions, that is not read.
        CheckpointError: a size that is missing or no number.

    """
    values, shapes = header.values, {tensor.name: tensor.shape for tensor in header.tensors}
    architecture = _architecture_called(values.get("general.architecture"))
    if "token_embd.weight" not in shapes:
        raise CheckpointError("holds no token_embd.weight; is it a language model?")
    found: dict[str, Any] = {"model_type": architecture.model_type, "architectures": [architecture.model_class]}
    for key, name in architecture.keys.items():
        value = values.get(f"{architecture.name}.{name}")
        if isinstance(value, ArrayLength | str | bool):
            raise NotYetError(f"has {architecture.name}.{name} = {value!r:.40}, where one number is read")
        if value == 0 and name.startswith("attention.head_count"):
            raise CheckpointError(f"has {architecture.name}.{name} = 0; is it a language model?")
        if value == 0 and name == "attention.sliding_window":  # how Phi-3 says that there is none
            value = None
        if value is not None:
            _require_sane(f"{architecture.name}.{name}", value, whole=key not in _FRACTIONS)
            found[key] = _shortest(value) if isinstance(value, float) else value
    found["vocab_size"] = shapes["token_embd.weight"][0]
    found["tie_word_embeddings"] = "output.weight" not in shapes
    found |= {name: values.get(key) if type(values.get(key)) is int else None for key, name in _SPECIAL.items()}
    if architecture.name == "gpt2":
        return found
    if "blk.0.attn_q.bias" in shapes and architecture.name == "llama":
        found["attention_bias"] = True
    if "head_dim" in architecture.keys and "head_dim" not in found:
        found["head_dim"] = found["hidden_size"] // max(1, found["num_attention_heads"])
    scale = _usual_scale(architecture, found, _head_width(architecture, found))
    found |= {} if scale is None else {"query_pre_attn_scalar": scale}
    return found | angles_of(architecture, values, shapes)


def _require_sane(name: str, value: float, *, whole: bool) -> None:
    """Raise `CheckpointError` unless `value` is a count, or a number that float32 holds and that is not negative."""
    sane = isinstance(value, int) and value > 0 if whole else 0 <= value <= _LARGEST
    if not sane:
        wanted = "a whole number above 0" if whole else "a number from 0 on"
        raise CheckpointError(f"has {name} = {value!r:.40}, which has to be {wanted}; the file is damaged")


def _shortest(value: float) -> float:
    """Return the decimal that a float32 came from: 1e-06, not 9.99999997e-07."""
    return float(str(np.float32(value)))


def _architecture_called(name: object) -> Architecture:
    known = [own for own in ARCHITECTURES.values() if own.name == name]
    if not known:
        names = dict.fromkeys(own.name for own in ARCHITECTURES.values())
        raise NotYetError(f"holds a model of the architecture {name!r:.80}; read are {', '.join(names)}")
    return known[0]


def _head_width(architecture: Architecture, configuration: Mapping[str, Any]) -> int:
    own = configuration.get("head_dim")
    width, heads = ("n_embd", "n_head") if architecture.name == "gpt2" else ("hidden_size", "num_attention_heads")
    return int(own or configuration[width] // configuration[heads])


def _require_usual_scale(architecture: Architecture, configuration: Mapping[str, Any], head: int) -> None:
    """Raise for a Gemma whose attention is scaled by another number than llama.cpp works out of its sizes."""
    own, usual = configuration.get("query_pre_attn_scalar"), _usual_scale(architecture, configuration, head)
    if usual is not None and own is not None and own != usual:
        raise CheckpointError(
            f"query_pre_attn_scalar = {own!r:.40} has no key in GGUF, where it is {usual} for a model of these sizes"
        )


def _usual_scale(architecture: Architecture, configuration: Mapping[str, Any], head: int) -> int | None:
    """Return what llama.cpp takes the root of to scale the attention of a Gemma 2 or 3; the largest have their own."""
    blocks = {"gemma2": 46, "gemma3": 62}.get(architecture.name)
    if blocks is None:
        return None
    large = blocks == configuration.get("num_hidden_layers")
    return int(configuration["hidden_size"] // configuration["num_attention_heads"]) if large else head


def _named(architecture: Architecture, values: Mapping[str, Any]) -> dict[str, Any]:
    return {f"{architecture.name}.{name}": value for name, value in values.items()}
