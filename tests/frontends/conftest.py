"""Tiny models of transformers with seeded random weights, and walks through blocks held against whole models."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from fewbit.frontends.torch.block_inputs import walk_blocks
from fewbit.frontends.torch.calls import Call, copied, run_batch, same

_SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
_GROUPED = {**_SHAPE, "num_key_value_heads": 2}
_CONFIGS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", _GROUPED),
    "GPT2": ("GPT2LMHeadModel", {"n_layer": 3, "n_embd": 32, "n_head": 4, "vocab_size": 300, "n_positions": 64}),
    "Bert": ("BertModel", _SHAPE),
    "ViT": ("ViTForImageClassification", {**_SHAPE, "image_size": 16, "patch_size": 8, "num_labels": 5}),
    "T5": (
        "T5ForConditionalGeneration",
        {"vocab_size": 300, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 3, "num_decoder_layers": 2,
         "num_heads": 4},
    ),
    "Bart": (
        "BartForConditionalGeneration",
        {"vocab_size": 300, "d_model": 32, "encoder_layers": 2, "decoder_layers": 3, "encoder_ffn_dim": 48,
         "decoder_ffn_dim": 48, "encoder_attention_heads": 4, "decoder_attention_heads": 4,
         "max_position_embeddings": 64},
    ),
    "Mixtral": ("MixtralForCausalLM", {**_GROUPED, "num_local_experts": 4}),
    # Layers 0 and 3 see everything, the others a window: two kinds of masks and of rotary tables.
    "ModernBert": (
        "ModernBertModel",
        {**_SHAPE, "num_hidden_layers": 6, "global_attn_every_n_layers": 3, "local_attention": 8, "pad_token_id": 0},
    ),
}  # fmt: skip


@pytest.fixture
def tiny() -> Callable[[str], tuple[nn.Module, list[Any]]]:
    """Return a function from the name of an architecture to a model and its batches."""

    def build(name: str) -> tuple[nn.Module, list[Any]]:
        torch.manual_seed(0)
        model_class, shape = _CONFIGS[name]
        model = getattr(transformers, model_class)(getattr(transformers, f"{name}Config")(**shape)).eval()
        return model, [_batch(name, seed) for seed in (1, 2)]

    return build


def _batch(name: str, seed: int) -> Any:
    draw = torch.Generator().manual_seed(seed)
    if name == "ViT":
        return torch.randn(2, 3, 16, 16, generator=draw)
    tokens = torch.randint(3, 300, (2, 24), generator=draw)
    if name in ("T5", "Bart"):
        return {"input_ids": tokens, "decoder_input_ids": tokens[:, :10].flip(1)}
    if name == "Llama":
        padded = torch.ones_like(tokens)
        padded[1, :5] = 0
        return {"input_ids": tokens, "attention_mask": padded}
    return tokens


@pytest.fixture
def watched() -> Callable[..., dict[str, list[tuple[Call, Any]]]]:
    """Return what a run of the whole model gives each block and gets from it: {name: [(call, output), ...]}."""
    return _watched


@pytest.fixture
def walk_and_disturb() -> Callable[..., list[str]]:
    """Return a function that changes block after block and returns the names of those that were captured.

    It compares all calls and outputs of the walk with those in the whole model as the walk leaves it behind.
    """
    return _walk_and_disturb


def _watched(model: nn.Module, names: list[str], batches: list[Any]) -> dict[str, list[tuple[Call, Any]]]:
    seen: dict[str, list[tuple[Call, Any]]] = {name: [] for name in names}
    hooks = []
    for name in names:

        def keep(module: nn.Module, args: Any, kwargs: Any, output: Any, name: str = name) -> None:
            seen[name].append((Call(args, kwargs).without_caches().copy(), copied(output)))

        hooks.append(model.get_submodule(name).register_forward_hook(keep, with_kwargs=True))
    for batch in batches:
        run_batch(model, batch)
    for hook in hooks:
        hook.remove()
    return seen


def _walk_and_disturb(model: nn.Module, names: list[str], batches: list[Any]) -> list[str]:
    walked = {}
    captured = []
    for block in walk_blocks(model, names, batches):
        captured += [] if block.chained else [block.name]
        with torch.no_grad():
            for parameter in block.module.parameters():
                parameter.copy_((parameter * 8).round() / 8 + 0.01)  # stands in for quantization
        walked[block.name] = ([call.copy() for call in block.calls], list(block.outputs()))
    for name, seen in _watched(model, names, batches).items():
        calls, outputs = walked[name]
        assert len(calls) == len(outputs) == len(seen), name
        for call, output, (expected, wanted) in zip(calls, outputs, seen, strict=True):
            assert same(call.arguments(), expected.arguments(), tolerance=8), name
            assert same(output, wanted, tolerance=8), name
    return captured
