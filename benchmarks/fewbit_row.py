"""fewbit on all linear layers but the head; writes the weights that the model computes with, as float32: a table's row.

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
from salient_channels import with_salient_channels

sys.path.append(str(Path(__file__).parent / "peers"))
from peer import peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--scheme", required=True)
    parser.add_argument("--algorithm", type=json.loads, default={"name": "gptq"})
    parser.add_argument("--transforms", type=json.loads, default=[], help="JSON, as in a recipe")
    parser.add_argument("--salient", type=float, help="share of the input channels that are 16-bit floats again")
    parser.add_argument("--written", type=int, default=0, help="sequences that the model writes besides")
    parser.add_argument("--sequential", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--device", default="auto", help="where it runs, such as cuda")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    model = open_source(given.model).load()
    started, used = time.perf_counter(), time.process_time()
    result = quantize(model, given)
    figures = {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - used,
        "peak_mb": peak_memory(given.device) / 1e6,
        "solving_seconds": sum(layer.seconds or 0.0 for layer in result.report.layers),
    }
    rows = [row.layer.name for row in result.plan.rows if row.scheme]
    weights = {f"{name}.weight": result.model.get_submodule(name).qtensor.dequantize().cpu() for name in rows}
    if given.salient:
        weights |= salient(result, given, figures)
    if given.transforms:  # which change what stays float too
        weights = {name: value.float().cpu() for name, value in result.model.named_parameters()} | weights
    save_file({name: weight.contiguous() for name, weight in weights.items()}, given.out)
    line = {"scheme": given.scheme, "layers": len(rows), **figures, "remarks": list(result.report.remarks)}
    print(json.dumps({key: round(value, 1) if isinstance(value, float) else value for key, value in line.items()}))


def salient(result: fb.Result, given: argparse.Namespace, figures: dict[str, Any]) -> dict[str, torch.Tensor]:
    """Return the weights with their salient columns in bfloat16, and write the bits of a weight into `figures`."""
    reference = open_source(given.model).load()
    share = with_salient_channels(result.model, reference, batches_of(given.tokens), given.salient)
    schemes = [row for row in result.plan.rows if row.scheme]
    sizes = [reference.get_submodule(row.layer.name).weight.shape for row in schemes]
    bits = sum(row.scheme.bits_per_weight(shape) * shape.numel() for row, shape in zip(schemes, sizes, strict=True))
    figures["bits"] = (1 - share) * bits / sum(shape.numel() for shape in sizes) + 16 * share
    return {f"{row.layer.name}.weight": result.model.get_submodule(row.layer.name).weight.detach() for row in schemes}


def batches_of(tokens: Path) -> list[torch.Tensor]:
    """Return the batches of a file."""
    return [torch.from_numpy(row)[None] for row in np.load(tokens)]


def quantize(model: Any, given: argparse.Namespace) -> fb.Result:
    rule = fb.Rule(kind="linear", weight=given.scheme, algorithm=given.algorithm)
    calibration = None
    if rule.algorithm.statistics or given.transforms:
        calibration = fb.Calibration(data=batches_of(given.tokens), written=given.written, sequential=given.sequential)
    recipe, options = fb.Recipe([rule], transforms=given.transforms), fb.Options(device=given.device)
    return fb.quantize(model, recipe, calibration=calibration, dtype="float16", options=options)


if __name__ == "__main__":
    main()
