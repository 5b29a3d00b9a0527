"""A Llama in a GGUF file: what its configuration and its tensors are in transformers, whose own reader takes its time.

`blk.3.attn_q.weight` is `model.layers.3.self_attn.q_proj.weight`. llama.cpp rotates neighbours, (2i, 2i + 1), and
transformers halves, (i, i + d/2): the rows of Q and K are stored in the order of the former. Source: llama.cpp,
conversion/llama.py; which keys count is what transformers reads.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from fewbit.checkpoints.gguf_header import ArrayLength, GgufHeader, GgufTensor
from fewbit.sources.gguf_numbers import read_numbers

#: Keys of the configuration by those of the file.
_KEYS = {
    "llama.attention.head_count": "num_attention_heads",
    "llama.attention.head_count_kv": "num_key_value_heads",
    "llama.attention.layer_norm_rms_epsilon": "rms_norm_eps",
    "llama.block_count": "num_hidden_layers",
    "llama.context_length": "max_position_embeddings",
    "llama.embedding_length": "hidden_size",
    "llama.feed_forward_length": "intermediate_size",
    "llama.rope.dimension_count": "head_dim",
    "llama.rope.freq_base": "rope_theta",
    "llama.vocab_size": "vocab_size",
    "tokenizer.ggml.bos_token_id": "bos_token_id",
    "tokenizer.ggml.eos_token_id": "eos_token_id",
    "tokenizer.ggml.padding_token_id": "pad_token_id",
    "tokenizer.ggml.unknown_token_id": "unk_token_id",
}
_VOCABULARY = "tokenizer.ggml.tokens"
_OUTSIDE = {"token_embd": "model.embed_tokens", "output_norm": "model.norm", "output": "lm_head"}
_INSIDE = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
_HEADS = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}


def is_llama(header: GgufHeader) -> bool:
    """Whether the file is a Llama of plain weights, each key and tensor of which has a place in this module.

    Others, such as those with factors for the angles of positions or with experts, are left to transformers.
    """
    values = header.values
    if values.get("general.architecture") != "llama":
        return False
    numbers = [values[key] for key in _KEYS if key in values]
    if any(isinstance(value, ArrayLength | bool | str) for value in numbers):
        return False
    if "llama.vocab_size" not in values and not isinstance(values.get(_VOCABULARY), ArrayLength):
        return False
    return all(_place(tensor.name) is not None for tensor in header.tensors)


def configuration(header: GgufHeader) -> dict[str, Any]:
    """Return what a `LlamaConfig` is made of."""
    values = header.values
    found: dict[str, Any] = {name: values[key] for key, name in _KEYS.items() if key in values}
    if "vocab_size" not in found:
        found["vocab_size"] = int(values[_VOCABULARY])
    found["tie_word_embeddings"] = all(tensor.name != "output.weight" for tensor in header.tensors)
    return found


def names(header: GgufHeader) -> dict[str, str]:
    """Return the names of the tensors in the model by those in the file."""
    return {tensor.name: str(_place(tensor.name)) for tensor in header.tensors}


def shapes(header: GgufHeader) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors by their names in the model."""
    own = names(header)
    return {own[tensor.name]: tensor.shape for tensor in header.tensors}


def readers(path: Path, header: GgufHeader, config: Any) -> dict[str, Callable[[], Any]]:
    """Return by the name in the model how to read the numbers of each tensor, a float32 array.

    `config` knows the heads.
    """
    own = names(header)
    return {own[tensor.name]: partial(_read, path, header, tensor, config) for tensor in header.tensors}


def _read(path: Path, header: GgufHeader, tensor: GgufTensor, config: Any) -> Any:
    numbers = read_numbers(path, header, tensor)
    heads = _HEADS.get(tensor.name.split(".")[-2])
    return _halves_from_neighbours(numbers, getattr(config, heads)) if heads else numbers


def _place(name: str) -> str | None:
    """Return the name that a tensor of the file has in the model."""
    match = re.fullmatch(r"(?:blk\.(0|[1-9][0-9]*)\.)?([a-z_]+)\.weight", name)
    if not match:
        return None
    block, part = match.groups()
    place = (_OUTSIDE if block is None else _INSIDE).get(part)
    if place is None:
        return None
    return f"{place}.weight" if block is None else f"model.layers.{block}.{place}.weight"


def _halves_from_neighbours(rows: Any, heads: int) -> Any:
    """Put the rows of each head, of which neighbours are rotated together, into an order with one half after the other.

    A head of rows 0 1 2 3 4 5 becomes 0 2 4 1 3 5.
    """
    return rows.reshape(heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)
