"""What transforms change: divergence of smollm2 from float under one scheme, with each transform and without.

Beside them what AWQ is compared with: the 1 % of the input channels with the largest inputs kept in float.

Run: python benchmarks/transforms.py [--model smollm2-rotated] [--calibration 8] [--case w8a8 ...]
    [--only REGEX] [--blocks 8]
Calibration and evaluation are different parts of pydoc_data.topics, sequences of 512 tokens. Needs fewbit[demo].
"""

from __future__ import annotations

import argparse
import copy
import re
import sys
import time
from typing import Any

import torch

import fewbit as fb
from fewbit.evaluation.quality import compare
from fewbit.frontends.torch.blocks import find_blocks
from fewbit.frontends.torch.layers import find_layers
from fewbit.sources import open_source
from salient_channels import with_salient_channels
from topics import pieces

#: Schemes of weights and inputs, and the algorithm, by name.
CASES: dict[str, tuple[str, str | None, str]] = {
    "w8a8": ("int8 channel", "int8 token asym", "nearest"),
    "w8a8-sym": ("int8 channel", "int8 token sym", "nearest"),
    "w8a8-static": ("int8 channel", "int8 static", "nearest"),
    "w4a16-channel": ("int4 channel", None, "nearest"),
    "w4a16-channel-gptq": ("int4 channel", None, "gptq"),
    "w4a16": ("int4 g64", None, "nearest"),
    "w4a16-clip": ("int4 g64 clip", None, "nearest"),
    "w4a16-gptq": ("int4 g64", None, "gptq"),
    "w4a16-clip-gptq": ("int4 g64 clip", None, "gptq"),
    "w4a16-asym": ("int4 g64 asym", None, "nearest"),
    "w3a16": ("int3 g64", None, "nearest"),
    "w3a16-asym": ("int3 g64 asym", None, "nearest"),
    "w3a16-asym-clip": ("int3 g64 asym clip", None, "nearest"),
    "w3a16-asym-gptq": ("int3 g64 asym", None, "gptq"),
    "w3a16-asym-clip-gptq": ("int3 g64 asym clip", None, "gptq"),
}
#: What is applied to each.
TRANSFORMS: dict[str, list[Any]] = {
    "none": [],
    "smoothquant 0.5": ["smoothquant"],
    "smoothquant 0.8": [{"name": "smoothquant", "alpha": 0.8}],
    "rotation": ["rotation"],
    "rotation, smoothquant 0.5": ["rotation", "smoothquant"],
    "awq": ["awq"],
    "awq without weights": [{"name": "awq", "weights": False}],
    "smoothquant search": [{"name": "smoothquant", "alpha": "search"}],
    "splitting": ["outlier-splitting"],
    "splitting, 4 bits": [{"name": "outlier-splitting", "bits": 4}],
    "1 % in float": [],
}
#: Shares of the input channels that are floats again after rounding.
SALIENT = {"1 % in float": 0.01}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--calibration", type=int, default=8, help="sequences")
    parser.add_argument("--evaluation", type=int, default=4, help="sequences")
    parser.add_argument("--case", nargs="*", choices=CASES, default=list(CASES))
    parser.add_argument("--blocks", type=int, help="quantize only the layers of this many blocks, the first")
    parser.add_argument("--only", default="", help="regular expression of transforms")
    given = parser.parse_args()
    source = open_source(given.model)
    calibration, evaluation = pieces(source, given.calibration, given.evaluation)
    print(f"{given.blocks or 'all'} blocks quantized\n")
    print("| case | transforms | KL, nats | top-1 | seconds |\n| --- | --- | ---: | ---: | ---: |")
    reference = source.load()
    names = layers_of(reference, given.blocks) if given.blocks else None
    for case in given.case:
        for transform in TRANSFORMS:
            if re.search(given.only, transform):
                row(reference, (case, transform, names), calibration, evaluation)


def layers_of(model: Any, count: int) -> str:
    """Return a regular expression for the names of the layers in the first `count` blocks."""
    blocks = find_blocks(model, find_layers(model)).blocks[:count]
    return "|".join(re.escape(layer.name) for block in blocks for layer in block.layers)


def row(reference: Any, what: tuple[str, str, str | None], calibration: Any, evaluation: Any) -> None:
    """Print one line of the table: of a case, a transform and the layers; what makes no sense together is left out."""
    case, transform, names = what
    weight, inputs, algorithm = CASES[case]
    rule = fb.Rule(names, kind="linear", weight=weight, input=inputs, algorithm=algorithm)
    recipe = fb.Recipe([fb.keep(kind="head", optional=True), rule], transforms=TRANSFORMS[transform])
    started = time.perf_counter()
    try:
        result = fb.quantize(copy.deepcopy(reference), recipe, calibration=calibration)
    except fb.FewbitError as error:
        print(f"| {case} | {transform} | {str(error).split(',')[0]} | | |", flush=True)
        return
    if transform in SALIENT:
        with_salient_channels(result.model, reference, calibration, SALIENT[transform])
    seconds = time.perf_counter() - started
    with torch.no_grad():
        _, after = compare(lambda t: reference(t).logits, lambda t: result.model(t).logits, evaluation)
    print(
        f"| {case} | {transform} | {after.kl_divergence:.5f} | {after.top1_agreement:.4f} | {seconds:.0f} |", flush=True
    )
    print("\n".join(f"    {remark}" for remark in result.report.remarks), file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
