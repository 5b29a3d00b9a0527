"""A figure of onnx_files.py's part memory: the most bytes that a process has held, without PyTorch, by samples.

Run: python onnx_memory.py --model M.onnx --calibration "fewbit minmax" --samples 64; the last line printed is JSON.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from fewbit.evaluation.peak_memory import peak_memory
from onnx_quantizers import CALIBRATIONS


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="one input x, (samples, 1, 64, 64)")
    parser.add_argument("--calibration", choices=CALIBRATIONS, required=True)
    parser.add_argument("--samples", type=int, required=True)
    given = parser.parse_args()
    sizes = [min(8, given.samples - start) for start in range(0, given.samples, 8)]
    batches = [
        {"x": np.random.default_rng(n).normal(size=(size, 1, 64, 64)).astype(np.float32)}
        for n, size in enumerate(sizes)
    ]
    with TemporaryDirectory() as folder:
        CALIBRATIONS[given.calibration]().write(given.model, batches, Path(folder) / "out.onnx")
    print(json.dumps({"peak": peak_memory()}))


if __name__ == "__main__":
    main()
