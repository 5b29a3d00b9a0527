"""Learned levels beside integers and NF4: signal to noise of the first blocks of smollm2-rotated in each scheme.

Run: python benchmarks/codebooks.py [--blocks 1] [--calibration 8] [--evaluation 4] [--only REGEX]
Calibration and evaluation are different parts of pydoc_data.topics, sequences of 512 tokens. Needs fewbit[demo].
"""

from __future__ import annotations

import argparse
import copy
import re
from typing import Any

import numpy as np
import torch

import fewbit as fb
from fewbit.sources import open_source
from topics import pieces

SCHEMES = (
    "int4 channel", "nf4 channel", "int4 g64", "kmeans4 channel", "kmeans4 g64",
    "int3 channel", "int3 g64", "kmeans3 channel", "kmeans3 g64", "int2 g64", "kmeans2 channel",
)  # fmt: skip
ALGORITHMS: dict[str, Any] = {"nearest": {"name": "nearest", "weighted": True}, "gptq": "gptq"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--blocks", type=int, default=1)
    parser.add_argument("--calibration", type=int, default=8, help="sequences")
    parser.add_argument("--evaluation", type=int, default=4, help="sequences")
    parser.add_argument("--only", default="", help="regular expression of schemes")
    given = parser.parse_args()
    source = open_source("smollm2-rotated")
    calibration, evaluation = pieces(source, given.calibration, given.evaluation)
    print(f"{given.blocks} blocks quantized\n")
    print("| scheme | bits a weight | nearest, weighted: layers | blocks | gptq: layers | blocks |")
    print("| --- | ---: | ---: | ---: | ---: | ---: |")
    reference = source.load()
    for scheme in SCHEMES:
        if re.search(given.only, scheme):
            cells = [
                row(reference, scheme, algorithm, given.blocks, (calibration, evaluation)) for algorithm in ALGORITHMS
            ]
            results = " | ".join(f"{layers:.1f} | {blocks:.1f}" for _, layers, blocks in cells)
            print(f"| {scheme} | {cells[0][0]:.2f} | {results} |", flush=True)


def row(reference: Any, scheme: str, algorithm: str, blocks: int, data: tuple[Any, Any]) -> tuple[float, float, float]:
    """Return bits a weight, and in dB the mean SQNR of layers on calibration data, that of the blocks on other data."""
    calibration, evaluation = data
    match = rf"model\.layers\.({'|'.join(map(str, range(blocks)))})\..*"
    recipe = fb.Recipe([fb.Rule(match, weight=scheme, algorithm=ALGORITHMS[algorithm])])
    result = fb.quantize(copy.deepcopy(reference), recipe, calibration=calibration)
    rows = [own for own in result.plan.rows if own.scheme]
    sizes = [own.layer.shape[0] * own.layer.shape[1] for own in rows]
    bits = sum(8 * own.bytes_after for own in rows) / sum(sizes)
    layers = np.mean([own.solved_sqnr for own in result.report.layers if own.solved_sqnr is not None])
    expected, found = (
        torch.cat([written(model, blocks, own) for own in evaluation]) for model in (reference, result.model)
    )
    return bits, float(layers), float(10 * torch.log10(expected.var() / (found - expected).square().mean()))


@torch.no_grad()
def written(model: Any, blocks: int, tokens: Any) -> torch.Tensor:
    """Return what the first blocks add to the residual stream, (tokens, width), each token scaled to the power of 1."""
    streams: list[torch.Tensor] = []
    before = model.model.layers[0].register_forward_pre_hook(lambda _, args: streams.append(args[0]))
    after = model.model.layers[blocks - 1].register_forward_hook(lambda _, __, output: streams.append(output))
    model.model(tokens)
    before.remove()
    after.remove()
    start, end = (own[0] if isinstance(own, tuple) else own for own in streams)
    added = (end - start).flatten(0, -2)
    return added / added.square().mean(-1, keepdim=True).sqrt()


if __name__ == "__main__":
    main()
