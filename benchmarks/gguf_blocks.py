"""How well and how fast GGUF's block types are searched, beside libgguf, which has llama.cpp's own searches.

Run: python benchmarks/gguf_blocks.py [--types Q4_0 Q4_K ...] [--rows N] [--out table.json]
Needs libgguf. Errors are squared and relative to the squares of the weights, plainly and weighted by an importance of
each input, log-normal, with libgguf given it as its importance matrix. Speeds are of one thread by processor time, in
turns.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from statistics import median
from typing import Any

import numba
import numpy as np

from fewbit.checkpoints.gguf.blocks import pack
from fewbit.qtensor import quantize
from fewbit.report.data import this_machine
from fewbit.schemes.gguf import GGUF_FORMATS, KINDS
from fewbit.schemes.notation import parse_scheme
from fewbit.schemes.scheme import Scheme

WIDTH = 1536
DEVIATION = 0.02
#: Turns of either side, of which the median counts: until all have taken so many seconds, so many at least.
SECONDS, TURNS = 2.0, 3


@dataclass(frozen=True)
class Row:
    """One type on one kind of weights; pairs are fewbit's and libgguf's."""

    kind: str
    data: str
    error: tuple[float, float]
    weighted: tuple[float, float]
    #: Million weights a second of processor time, without and with importance.
    speed: tuple[float, float]
    weighted_speed: tuple[float, float]


def scheme_for(kind: str) -> Scheme:
    """Return the scheme of a type; scales of small floats are searched only when asked for."""
    word = KINDS[kind]
    return parse_scheme(word if word in GGUF_FORMATS else f"{word} mse")


def datasets(rows: int) -> dict[str, Any]:
    """Return weights (rows, WIDTH), float32, by name."""
    rng = np.random.default_rng(0)
    found = {
        "Gaussian": rng.standard_normal((rows, WIDTH)) * DEVIATION,
        "Student t(4)": rng.standard_t(4, (rows, WIDTH)) * DEVIATION,
        "smollm2-rotated": rotated_weights(rows),
    }
    return {name: np.ascontiguousarray(values, np.float32) for name, values in found.items()}


def rotated_weights(rows: int) -> Any:
    """Return the first rows of the layers of smollm2-rotated that are `WIDTH` wide, a layer in five."""
    from fewbit.sources import open_source

    layers = open_source("smollm2-rotated").load().model.layers
    weights = [layer.mlp.down_proj.weight.detach().numpy() for layer in layers[::5]]
    each = -(-rows // len(weights))
    return np.concatenate([weight[:each] for weight in weights])[:rows]


def importance() -> Any:
    """Return what errors of each input count, float32 (WIDTH,)."""
    return np.exp(np.random.default_rng(1).standard_normal(WIDTH)).astype(np.float32)


def relative_error(found: Any, weight: Any, counted: Any) -> float:
    """Return the squared error as a share of the squares, both weighted."""
    exact = weight.astype(np.float64)
    return float(((found - exact) ** 2 * counted).sum() / (exact**2 * counted).sum())


def in_turns(calls: list[Callable[[], Any]]) -> tuple[list[Any], list[float]]:
    """Return what each call returns, and the processor seconds of a run, the median; they take turns."""
    results = [call() for call in calls]
    taken: list[list[float]] = [[] for _ in calls]
    while len(taken[0]) < TURNS or sum(map(sum, taken)) < SECONDS:
        for own, call in zip(taken, calls, strict=True):
            start = time.process_time()
            call()
            own.append(time.process_time() - start)
    return results, [median(own) for own in taken]


def row(kind: str, name: str, weight: Any) -> Row:
    """Return the measurements of a type on some weights; both sides end with the bytes."""
    import libgguf

    scheme, counted, errors, speeds = scheme_for(kind), importance(), [], []
    theirs = libgguf.GGMLQuantizationType[kind]
    for given in (None, counted):
        calls = [
            lambda given=given: quantize(weight, scheme, given),
            lambda given=given: libgguf.quantize_rows(weight, theirs, given),
        ]
        (own, other), seconds = in_turns(calls)
        pack(own, kind)  # it is on the grid
        values = own.dequantize(), libgguf.dequantize_rows(other, theirs)
        weights = np.ones_like(counted) if given is None else given
        errors.append(tuple(relative_error(found, weight, weights) for found in values))
        speeds.append(tuple(weight.size / spent / 1e6 for spent in seconds))
    return Row(kind, name, errors[0], errors[1], speeds[0], speeds[1])


def table(rows: list[Row]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| type | weights | error, libgguf's | share | weighted, libgguf's | share | M weights/s | weighted |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for own in rows:
        cells = [own.kind, own.data]
        for ours, theirs in (own.error, own.weighted):
            cells += [f"{ours:.6f}, {theirs:.6f}", f"{ours / theirs:.3f}"]
        cells += [f"{ours:.1f}, {theirs:.1f}" for ours, theirs in (own.speed, own.weighted_speed)]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--types", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--rows", type=int, default=512, help="rows of each kind of weights")
    parser.add_argument("--out", type=Path, help="write the rows as JSON, too")
    arguments = parser.parse_args()
    numba.set_num_threads(1)
    data = datasets(arguments.rows)
    rows = [row(kind, name, weight) for kind in arguments.types for name, weight in data.items()]
    print(table(rows))
    print(f"{this_machine()}; libgguf {metadata.version('libgguf')}")
    if arguments.out:
        arguments.out.write_text(json.dumps([asdict(own) for own in rows], indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
