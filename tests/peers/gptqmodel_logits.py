"""Loads GPTQ and AWQ folders with transformers and GPTQModel, and writes what comes of each: a program of its own.

    benchmarks/peers/gptqmodel/bin/python tests/peers/gptqmodel_logits.py TOKENS.npy FOLDER...

Beside every folder comes FOLDER.npz: `logits` (sequences, length, vocabulary) and by name the weights (out, in) of the
quantized layers, float16 as GPTQModel's kernels in plain torch dequantize them. Its compiled kernels round more.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from gptqmodel.quantization.awq.utils.packing_utils import dequantize_gemm
from transformers import AutoModelForCausalLM, AwqConfig, GPTQConfig

PLAIN = {"gptq": (GPTQConfig, "gptq_torch"), "awq": (AwqConfig, "torch_awq")}


def weight(layer, method):
    """Return the weight (out, in) of a layer as its kernel has it."""
    if method == "gptq":
        return layer.dequantize_weight().T
    parts = {name: getattr(layer, name) for name in ("qweight", "qzeros", "scales")}
    return dequantize_gemm(**parts, bits=layer.bits, group_size=layer.group_size).T


def main(tokens: str, folders: list[str]) -> None:
    inputs = torch.from_numpy(np.load(tokens))
    for folder in map(Path, folders):
        written = json.loads((folder / "config.json").read_text())["quantization_config"]
        method = written["quant_method"]
        kind, backend = PLAIN[method]
        how = kind(bits=written["bits"], backend=backend)
        model = AutoModelForCausalLM.from_pretrained(
            folder, device_map="cpu", dtype=torch.float32, quantization_config=how
        )
        layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "qweight")}
        with torch.no_grad():
            found = {name: weight(layer, method).numpy() for name, layer in layers.items()}
            found["logits"] = model(inputs).logits.float().numpy()
        np.savez(folder.with_name(f"{folder.name}.npz"), **found)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
