"""Layers by what rounding did to them: by the error of their output where that was measured, else of their weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fewbit.report.drawing import error
from fewbit.report.layer_report import LayerReport


@dataclass(frozen=True, slots=True)
class Damaged:
    """A layer and the SQNR in dB that it is ordered by."""

    layer: LayerReport
    sqnr: float


@dataclass(frozen=True, slots=True)
class Damage:
    """Layers with the most damaged first."""

    #: What they are ordered by, in words.
    what: str
    layers: tuple[Damaged, ...]

    @property
    def longest(self) -> float:
        """The largest finite error: what a whole bar stands for."""
        errors = [error(own.sqnr) for own in self.layers]
        return max((lost for lost in errors if 0.0 < lost < math.inf), default=1.0)


def by_damage(layers: Sequence[LayerReport]) -> Damage:
    """Return the quantized layers that were measured, the lowest SQNR first; equal ones in the order of the model."""
    outputs = any(layer.output_sqnr is not None for layer in layers)
    ratios = [(layer, layer.output_sqnr if outputs else layer.weight_sqnr) for layer in layers]
    found = [Damaged(layer, ratio) for layer, ratio in ratios if ratio is not None and not math.isnan(ratio)]
    what = "error of the output" if outputs else "error of the weight"
    return Damage(what, tuple(sorted(found, key=lambda own: own.sqnr)))
