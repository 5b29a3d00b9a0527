"""The weights that transformers with compressed-tensors has after loading folders that fewbit wrote.

Run: compressedtensors019/bin/python compressedtensors_weights.py --folders A B --out FOLDER [--dequantize]
Writes FOLDER/A.safetensors, ... with every tensor of the model as it runs; prints a JSON line with versions, and the
error of each folder that did not load. Default: as transformers loads them; `--dequantize`: float weights at once.
"""

from __future__ import annotations

import argparse
import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig


def main() -> None:
    words = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    words.add_argument("--folders", type=Path, nargs="+", required=True)
    words.add_argument("--out", type=Path, required=True)
    words.add_argument("--dequantize", action="store_true")
    given = words.parse_args()
    errors = {}
    for folder in given.folders:
        try:
            tensors = loaded(folder, dequantize=given.dequantize)
            save_file(tensors, given.out / f"{folder.name}.safetensors")
        except Exception as error:  # what it says is the finding
            errors[folder.name] = f"{type(error).__name__}: {error}"[:300]
    versions = {package: version(package) for package in ("compressed-tensors", "transformers", "torch")}
    print(json.dumps({"versions": versions, "errors": errors}))


def loaded(folder: Path, *, dequantize: bool) -> dict[str, Any]:
    """Return the tensors of the model behind its first forward, which is when the default mode decompresses."""
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16, local_files_only=True, **how)
    with torch.no_grad():
        model(torch.tensor([[1, 2, 3]]))
    return {name: tensor.contiguous().clone() for name, tensor in model.state_dict().items()}


if __name__ == "__main__":
    main()
