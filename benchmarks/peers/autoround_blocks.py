"""auto-round on all linear layers but the head; writes the weights that they compute with, as float32.

Run: llmcompressor/bin/python autoround_blocks.py --model FOLDER --tokens FILE.npy --scheme "int4 g64" --out FILE
Source: auto-round's `AutoRound`, every option its default but the scheme, `--steps` a block and `--samples` a step.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from auto_round import AutoRound
from peer import Scheme, finish, linear_layers, load, parsed, parser, read_tokens, timed, versions
from transformers import AutoTokenizer


def main() -> None:
    words = parser(__doc__, tokens=True)
    words.add_argument("--steps", type=int, default=200)
    words.add_argument("--samples", type=int, default=8)
    given = parsed(words)
    found = versions("auto-round", "transformers", "torch")
    model = load(given.model)
    tokens = read_tokens(given.tokens, model.config.vocab_size)
    layers = linear_layers(model)
    shapes = {name: layer.weight.shape for name, layer in layers.items()}
    tool = prepared(model, AutoTokenizer.from_pretrained(given.model, local_files_only=True), tokens, given)
    cost = timed(tool.quantize)
    weights = {name: layer.weight.detach() for name, layer in linear_layers(tool.model).items()}
    finish(weights, shapes, given, **cost, calibration=tokens.shape, versions=found)


def prepared(model: Any, tokenizer: Any, tokens: np.ndarray, given: Any) -> Any:
    """Return the tool, which leaves the rounded weights in the model."""
    scheme: Scheme = given.scheme
    return AutoRound(
        model, tokenizer, bits=scheme.bits, group_size=scheme.group or -1, sym=scheme.symmetric, iters=given.steps,
        nsamples=len(tokens), seqlen=tokens.shape[1], batch_size=given.samples, device_map="cpu",
        dataset=[torch.from_numpy(row)[None] for row in tokens],
    )  # fmt: skip


if __name__ == "__main__":
    main()
