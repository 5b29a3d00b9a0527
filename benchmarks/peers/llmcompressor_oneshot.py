"""GPTQ or AWQ by llm-compressor on all linear layers but the head; writes the weights that they compute with.

Run: llmcompressor/bin/python llmcompressor_oneshot.py --model FOLDER --tokens FILE.npy --scheme "int4 g64" --out FILE
Source: its `oneshot` with `GPTQModifier`, or `AWQModifier` before it or before rounding to nearest (`--modifiers`),
every option its default; packed weights are unpacked again.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from compressed_tensors.compressors import compress_module, decompress_module
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from llmcompressor.modifiers.transform.awq import AWQModifier
from llmcompressor.pipelines.cache import IntermediatesCache
from loguru import logger
from peer import Scheme, finish, linear_layers, load, parsed, parser, read_tokens, timed, versions

#: What runs one after the other, by the word for it here.
MODIFIERS: dict[str, list[Any]] = {
    "gptq": [GPTQModifier],
    "awq": [AWQModifier, QuantizationModifier],
    "awq-gptq": [AWQModifier, GPTQModifier],
}


if not torch.cuda.is_available():
    IntermediatesCache.pin_memory = lambda *_: None  # version 0.14 asks for a GPU here in any case


def main() -> None:
    words = parser(__doc__, tokens=True)
    words.add_argument("--modifiers", choices=MODIFIERS, default="gptq")
    given = parsed(words)
    found = versions("llmcompressor", "compressed-tensors", "transformers", "torch")
    warnings = collect_warnings()
    torch.manual_seed(0)  # the tool shuffles the sequences
    model = load(given.model)
    tokens = read_tokens(given.tokens, model.config.vocab_size)
    shapes = {name: layer.weight.shape for name, layer in linear_layers(model).items()}
    cost = timed(lambda: quantize(model, tokens, given.scheme, MODIFIERS[given.modifiers]))
    weights = stored_weights(model)
    # AWQ changes norms; scales of whole rows, and shapes, have one axis too.
    norms = {name: own.detach() for name, own in model.named_parameters() if own.ndim == 1 and name.endswith(".weight")}
    finish(weights, shapes, given, norms, **cost, calibration=tokens.shape, warnings=warnings, versions=found)


def collect_warnings() -> list[str]:
    """Return the list that gets the tool's warnings; from now on its log goes to standard error, warnings only."""
    warnings: list[str] = []
    logger.remove()
    for sink in (sys.stderr, lambda message: warnings.append(message.record["message"])):
        logger.add(sink, level="WARNING", filter=lambda record: record["level"].name != "METRIC")
    return warnings


def quantize(model: Any, tokens: np.ndarray, scheme: Scheme, modifiers: list[Any]) -> None:
    """Run the tool on `model`, in place."""
    head = [name for name, module in model.named_modules() if module is model.get_output_embeddings()]
    grouped = {"strategy": "group", "group_size": scheme.group} if scheme.group else {"strategy": "channel"}
    weights = {"num_bits": scheme.bits, "type": "int", "symmetric": scheme.symmetric, **grouped}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    dataset = Dataset.from_dict({"input_ids": tokens.tolist()})
    oneshot(
        model=model,
        dataset=dataset,
        recipe=[*(made() for made in modifiers[:-1]), modifiers[-1](config_groups=groups, ignore=head)],
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
