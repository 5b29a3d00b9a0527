"""GPTQModel on all linear layers but the head; writes the weights that they compute with, as float32.

Run: gptqmodel/bin/python gptqmodel_quantize.py --model FOLDER --tokens FILE.npy --scheme "int4 g64" --out FILE
Source: its `GPTQModel.load` and `quantize`, every option its default but the scheme; packed weights are unpacked again.
"""

from __future__ import annotations

import os
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

os.environ.setdefault("GPTQMODEL_CPU_WORKERS", "2")  # with one, as for a core, version 7.7 does not start
from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
from peer import Scheme, arguments, finish, linear_layers, load, read_tokens, timed, versions


def main() -> None:
    given = arguments(__doc__, tokens=True)
    found = versions("gptqmodel", "transformers", "torch")
    model = load(given.model)
    tokens = read_tokens(given.tokens, model.config.vocab_size)
    shapes = {name: layer.weight.shape for name, layer in linear_layers(model).items()}
    del model  # the tool loads its own
    given.model, given.out = given.model.resolve(), given.out.resolve()
    with TemporaryDirectory() as folder:
        os.chdir(folder)  # the tool leaves its logs where it runs
        tool = GPTQModel.load(str(given.model), configuration(given.scheme), device="cpu", dtype=torch.float32)
        cost = timed(lambda: quantize(tool, tokens))
        tool.save("quantized")  # zero points count otherwise in memory, until a file is read
        weights = stored_weights(GPTQModel.load("quantized", backend=BACKEND.TORCH, device="cpu").model)
        os.chdir(given.out.parent)
    finish(weights, shapes, given, **cost, calibration=tokens.shape, versions=found)


def configuration(scheme: Scheme) -> Any:
    """Return what the tool calls the scheme; its order of columns, by groups, is not for whole rows."""
    order = {} if scheme.group else {"act_group_aware": False, "desc_act": True}
    return QuantizeConfig(
        bits=scheme.bits, group_size=scheme.group or -1, sym=scheme.symmetric, offload_to_disk=False, **order
    )


def quantize(tool: Any, tokens: np.ndarray) -> None:
    """Run the tool on its model, in place."""
    samples = [
        {"input_ids": row[None], "attention_mask": torch.ones_like(row)[None]} for row in torch.from_numpy(tokens)
    ]
    tool.quantize(samples, batch_size=1, backend=BACKEND.TORCH)


@torch.no_grad()
def stored_weights(model: Any) -> dict[str, torch.Tensor]:
    """Return each quantized layer's weight (out, in) as its packed form is read."""
    packed = {name: own for name, own in model.named_modules() if hasattr(own, "qweight")}
    return {name: own.dequantize_weight().T for name, own in packed.items()}


if __name__ == "__main__":
    main()
