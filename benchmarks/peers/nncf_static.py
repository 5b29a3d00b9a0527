"""NNCF on an ONNX file, 8-bit weights and inputs with ranges from data; writes Q/DQ.

Run: nncf/bin/python nncf_static.py --model M.onnx --data BATCHES.npz --out Q.onnx, arrays named `NUMBER/INPUT`.
Source: `nncf.quantize` for the CPU, options its defaults but the model type; the last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
import time
from importlib.metadata import version
from pathlib import Path

import nncf
import numpy as np
import onnx


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--transformer", action="store_true", help="what NNCF calls its model type")
    given = parser.parse_args()
    batches = read(given.data)
    started = time.perf_counter()
    quantized = nncf.quantize(
        onnx.load(given.model), nncf.Dataset(batches), target_device=nncf.TargetDevice.CPU, subset_size=len(batches),
        model_type=nncf.ModelType.TRANSFORMER if given.transformer else None,
    )  # fmt: skip
    onnx.save(quantized, given.out)
    print(json.dumps({"seconds": time.perf_counter() - started, "nncf": version("nncf")}))


def read(path: Path) -> list[dict[str, np.ndarray]]:
    """Return the batches in their order."""
    found: dict[int, dict[str, np.ndarray]] = {}
    with np.load(path) as data:
        for key in data.files:
            number, _, name = key.partition("/")
            found.setdefault(int(number), {})[name] = data[key]
    return [found[number] for number in sorted(found)]


if __name__ == "__main__":
    main()
