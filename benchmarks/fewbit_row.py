"""fewbit on all linear layers but the head; writes the weights that they compute with, as float32: a row of a table.

Run: python fewbit_row.py --model FOLDER --tokens FILE.npy --scheme "int4 g64" --algorithm '{"name": "gptq"}' --out FILE
The last line printed is JSON: seconds, CPU seconds, peak memory of the process, and where the time went.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

import fewbit as fb
from fewbit.sources import open_source

sys.path.append(str(Path(__file__).parent / "peers"))
from peer import peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--scheme", required=True)
    parser.add_argument("--algorithm", type=json.loads, default={"name": "gptq"})
    parser.add_argument("--sequential", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model = open_source(given.model).load()
    started, used = time.perf_counter(), time.process_time()
    result = quantize(model, given)
    figures = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - used,
        "peak_mb": peak_memory() / 1e6,
        "solving_seconds": sum(layer.seconds or 0.0 for layer in result.report.layers),
    }
    rows = [row.layer.name for row in result.plan.rows if row.scheme]
    weights = {f"{name}.weight": result.model.get_submodule(name).qtensor.dequantize() for name in rows}
    save_file({name: weight.contiguous() for name, weight in weights.items()}, given.out)
    line = {"scheme": given.scheme, "layers": len(rows), **figures, "remarks": list(result.report.remarks)}
    print(json.dumps({key: round(value, 1) if isinstance(value, float) else value for key, value in line.items()}))


def quantize(model: Any, given: argparse.Namespace) -> fb.Result:
    rule = fb.Rule(kind="linear", weight=given.scheme, algorithm=given.algorithm)
    calibration = None
    if rule.algorithm.statistics:
        batches = [torch.from_numpy(row)[None] for row in np.load(given.tokens)]
        calibration = fb.Calibration(data=batches, sequential=given.sequential)
    return fb.quantize(model, fb.Recipe([rule]), calibration=calibration, dtype="float16")


if __name__ == "__main__":
    main()
