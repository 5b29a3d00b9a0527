"""Loads GPTQ and AWQ folders with transformers and GPTQModel, and writes the logits of each: a program of its own.

    benchmarks/peers/gptqmodel/bin/python tests/peers/gptqmodel_logits.py TOKENS.npy FOLDER...

Beside every folder comes FOLDER.npz: `logits` (sequences, length, vocabulary) in float32, and the `kernel` of a layer.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main(tokens: str, folders: list[str]) -> None:
    inputs = torch.from_numpy(np.load(tokens))
    for folder in map(Path, folders):
        model = AutoModelForCausalLM.from_pretrained(folder, device_map="cpu", dtype=torch.float32)
        kernels = Counter(type(module).__name__ for module in model.modules() if hasattr(module, "qweight"))
        with torch.no_grad():
            logits = model(inputs).logits.float().numpy()
        np.savez(folder.with_name(f"{folder.name}.npz"), logits=logits, kernel=next(iter(kernels), ""))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
