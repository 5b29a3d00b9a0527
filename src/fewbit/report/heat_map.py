"""Large channels of inputs, layer by layer: runs of channels as cells, darker with each doubling of the median."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from fewbit.report.layer_report import LayerReport

#: The least multiple of the median that each step of the colour stands for.
STEPS = (2, 4, 8, 16, 32)


@dataclass(frozen=True, slots=True)
class HeatRow:
    """Layers with the same input: its cells by step, and in figures its largest channels."""

    names: tuple[str, ...]
    cells: int
    #: A path of cells of height 1 for each step; empty where there are none.
    paths: tuple[str, ...]
    #: Channel and multiple, the largest first.
    outliers: tuple[tuple[int, float], ...]


def heat_rows(layers: Sequence[LayerReport]) -> list[HeatRow]:
    """Return a row for each input that was looked at; layers that share theirs follow one another."""
    found = []
    seen = [(layer.name, layer.inputs) for layer in layers if layer.inputs is not None]
    for _, alike in groupby(seen, key=lambda own: (own[1].median, own[1].channels, own[1].outliers)):
        names, inputs = zip(*alike, strict=True)
        row = HeatRow(
            names=names,
            cells=len(inputs[0].channels),
            paths=tuple(_path(inputs[0].channels, step) for step in range(len(STEPS))),
            outliers=inputs[0].outliers[:3],
        )
        found.append(row)
    return found


def step_of(multiple: float) -> int | None:
    """Return the step of a multiple of the median.

    >>> step_of(1.9), step_of(2.0), step_of(17.0), step_of(float("inf"))
    (None, 0, 3, 4)
    """
    if not multiple >= STEPS[0]:
        return None
    return len(STEPS) - 1 if math.isinf(multiple) else min(int(math.log2(multiple)) - 1, len(STEPS) - 1)


def _path(channels: Sequence[float], step: int) -> str:
    """Return the cells of a step, neighbours as one.

    >>> _path((1.0, 2.5, 3.0, 1.0, 40.0), 0)
    'M1 0h2v1h-2z'
    """
    parts, place = [], 0
    for own, cells in groupby(channels, key=step_of):
        length = len(list(cells))
        if own == step:
            parts.append(f"M{place} 0h{length}v1h-{length}z")
        place += length
    return "".join(parts)
