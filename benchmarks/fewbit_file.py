"""fewbit's GGUF file of a Hugging Face folder: a row of `gguf_files.py`.

Run: python fewbit_file.py --model FOLDER --tokens FILE.npy --recipe q4_k_m [--transforms JSON] --out FILE.gguf
The last line printed is JSON: seconds, CPU seconds, peak memory of the process.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import fewbit as fb
from fewbit.presets import preset
from fewbit.transforms import parse_transform

sys.path.append(str(Path(__file__).parent / "peers"))
from peer import peak_memory


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=Path, required=True)
    parser.add_argument("--recipe", required=True)
    parser.add_argument("--transforms", type=json.loads, default=[], help="JSON, as in a recipe")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    started, used = time.perf_counter(), time.process_time()
    batches = [torch.from_numpy(row)[None] for row in np.load(given.tokens)]
    recipe = replace(preset(given.recipe), transforms=tuple(map(parse_transform, given.transforms)))
    result = fb.quantize(given.model, recipe, calibration=fb.Calibration(data=batches), to="gguf")
    result.save(given.out, overwrite=True)
    seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - used
    print(json.dumps({"seconds": seconds, "cpu_seconds": cpu_seconds, "peak_mb": peak_memory() / 1e6}))


if __name__ == "__main__":
    main()
