"""Bits chosen by fewbit under a budget: a row of `allocation.py`; writes the weights that the model computes with.

Run: python allocation_row.py --model FOLDER --tokens FILE.npy --budget "4.0 bits" --candidates "int3 g64,int4 g64"
     [--to gguf] --out FILE
With --uniform a scheme for every layer in the place of a budget. Scores are kept in cache/scores. The last line printed
is JSON: seconds, CPU seconds, peak memory, bytes, bits, what was predicted and measured.
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
    parser.add_argument("--budget")
    parser.add_argument("--candidates")
    parser.add_argument("--uniform")
    parser.add_argument("--to")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    started, used = time.perf_counter(), time.process_time()
    batches = [torch.from_numpy(row)[None] for row in np.load(given.tokens)]
    found = None if given.uniform else allocated(given, batches)
    searched = time.perf_counter() - started
    model: Any = given.model if given.to == "gguf" else open_source(given.model).load()
    recipe = found.recipe if found else uniform(given.uniform)
    result = fb.quantize(model, recipe, calibration=batches, to=given.to, dtype="float16")
    if given.to == "gguf":
        result.save(given.out, overwrite=True)
    else:
        rows = [row.layer.name for row in result.plan.rows if row.scheme]
        weights = {f"{name}.weight": result.model.get_submodule(name).qtensor.dequantize() for name in rows}
        save_file({name: weight.contiguous() for name, weight in weights.items()}, given.out)
    layers = [row for row in result.plan.rows if row.bytes_before]
    numbers = sum(row.layer.shape[0] * row.layer.shape[1] for row in layers)
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - started, "searching_seconds": searched,
                "cpu_seconds": time.process_time() - used, "peak_mb": peak_memory() / 1e6,
                "tensor_bytes": result.plan.bytes_after,
                "bits": 8 * (result.plan.bytes_after - result.plan.rest_bytes) / numbers,
                "predicted": found.report.predicted if found else None,
                "measured": found.report.measured if found else None,
                "chosen": dict(found.report.summary())["bits"] if found else given.uniform,
            }
        )
    )  # fmt: skip


def allocated(given: argparse.Namespace, batches: list[torch.Tensor]) -> fb.Allocation:
    # The loop measures on a part of the calibration text, which is no text of the table.
    return fb.allocate(
        given.model,
        given.budget,
        given.candidates,
        to=given.to,
        dtype="float16",
        calibration=batches,
        evaluation=batches[-4:],
        rounds=given.rounds,
        cache=Path(__file__).parent / "cache/scores",
    )


def uniform(scheme: str) -> fb.Recipe:
    """Return the recipe that gives every layer a scheme, found as an allocation would find it."""
    rules = [
        fb.Rule(kind="embedding", weight=scheme),
        fb.Rule(kind="linear", weight=scheme, algorithm=fb.Gptq(guided=True)),
    ]
    head = fb.Nearest(weighted=True)
    own = head if not head.problem(fb.parse_scheme(scheme)) else fb.Nearest()
    return fb.Recipe([*rules, fb.Rule(kind="head", weight=scheme, algorithm=own)], name=scheme)


if __name__ == "__main__":
    main()
