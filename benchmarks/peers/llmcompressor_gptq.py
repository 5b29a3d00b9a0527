"""GPTQ by llm-compressor on all linear layers but the head; writes the weights that they compute with, as float32.

Run: llmcompressor/bin/python llmcompressor_gptq.py --model FOLDER --tokens FILE.npy --scheme "int4 g64" --out FILE
Source: llmcompressor's `oneshot` with `GPTQModifier`, every option its default; its packed weights are unpacked again.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import compress_module, decompress_module
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from loguru import logger
from peer import Scheme, arguments, fail, finish, linear_layers, load, timed, versions


def main() -> None:
    given = arguments(__doc__, tokens=True)
    found = versions("llmcompressor", "compressed-tensors", "transformers", "torch")
    warnings = collect_warnings()
    torch.manual_seed(0)  # the tool shuffles the sequences
    model = load(given.model)
    tokens = read_tokens(given.tokens, model.config.vocab_size)
    shapes = {name: layer.weight.shape for name, layer in linear_layers(model).items()}
    cost = timed(lambda: quantize(model, tokens, given.scheme))
    weights = stored_weights(model)
    finish(weights, shapes, given, **cost, calibration=tokens.shape, warnings=warnings, versions=found)


def collect_warnings() -> list[str]:
    """Return the list that gets the tool's warnings; from now on its log goes to standard error, warnings only."""
    warnings: list[str] = []
    logger.remove()
    for sink in (sys.stderr, lambda message: warnings.append(message.record["message"])):
        logger.add(sink, level="WARNING", filter=lambda record: record["level"].name != "METRIC")
    return warnings


def read_tokens(path: Path, vocabulary: int) -> np.ndarray:
    tokens = np.load(path)
    if tokens.ndim != 2 or tokens.dtype != np.int64 or not tokens.size:
        fail(f"{path} is {tokens.dtype} {tokens.shape}; write int64 token ids of shape (sequences, length)")
    if tokens.min() < 0 or tokens.max() >= vocabulary:
        fail(f"{path} has ids {tokens.min()} to {tokens.max()}, the model {vocabulary} tokens; use its own tokenizer")
    return tokens


def quantize(model: Any, tokens: np.ndarray, scheme: Scheme) -> None:
    """Run the tool on `model`, in place."""
    head = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    weights = {
        "num_bits": scheme.bits, "type": "int", "strategy": "group", "group_size": scheme.group,
        "symmetric": scheme.symmetric,
    }  # fmt: skip
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    dataset = Dataset.from_dict({"input_ids": tokens.tolist()})
    oneshot(
        model=model,
        dataset=dataset,
        recipe=GPTQModifier(config_groups=groups, ignore=head),
        num_calibration_samples=len(tokens),
        max_seq_length=tokens.shape[1],
    )


@torch.no_grad()
def stored_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return each quantized layer's weight as its packed file would be read back."""
    weights = {}
    for name, module in model.named_modules():
        if getattr(module, "quantization_scheme", None) is None:
            continue
        compress_module(module)
        decompress_module(module)
        weights[name] = module.weight.detach()
    return weights


if __name__ == "__main__":
    main()
