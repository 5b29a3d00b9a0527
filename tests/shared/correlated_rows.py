"""Inputs whose channels are correlated and of different size: their second moment, and the error of an output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True, eq=False)
class CorrelatedRows:
    """Rows for a weight (out, in)."""

    weight: np.ndarray
    #: A second moment, how many rows it sees, how much channels differ in size, and what is added to them.
    kind: Any
    count: int
    spread: float
    shift: float = 0.0

    def rows(self, seed: int, count: int | None = None, width: int | None = None) -> np.ndarray:
        """Return float32 (count, width)."""
        width, draw = width or self.weight.shape[1], np.random.default_rng(7)
        mixed = draw.normal(size=(width, width)) / 8 * np.exp(self.spread * draw.normal(size=width))
        drawn = np.random.default_rng(seed).normal(size=(count or self.count, width))
        return (drawn @ mixed + self.shift).astype(np.float32)

    def moment(self, seed: int, count: int | None = None, kind: Any = None) -> Any:
        """Return the second moment of rows."""
        found = (kind or self.kind).init(self.weight.shape[1], self.weight)
        found.update(self.rows(seed, count))
        return found

    def error(self, qtensor: Any, moment: Any, weight: np.ndarray | None = None) -> np.ndarray:
        """Return tr((W' - W) H (W' - W)^T) by row, in float64."""
        off = np.asarray(qtensor.dequantize(), np.float64) - (self.weight if weight is None else weight)
        return ((off @ moment.result().astype(np.float64)) * off).sum(1)
