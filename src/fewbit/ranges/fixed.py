"""Bounds that are given, the same for every box."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.errors import SchemeError
from fewbit.numerics.namespace import Array, array_namespace
from fewbit.ranges.grid import Grid


@dataclass(frozen=True, slots=True)
class Fixed:
    """`low` and `high` for every box; `low` left out is `-high`."""

    #: Upper bound.
    high: float
    #: Lower bound.
    low: float | None = None

    def __post_init__(self) -> None:
        if self.low is None:
            object.__setattr__(self, "low", -self.high)
        if not (self.lowest <= 0.0 <= self.high and self.lowest < self.high < float("inf")):
            raise SchemeError(f"fixed bounds {self.low} and {self.high} do not hold 0 and more")

    @property
    def lowest(self) -> float:
        """Lower bound."""
        assert self.low is not None  # set by __post_init__
        return self.low

    @property
    def name(self) -> str:
        """The word for it."""
        return "fixed"

    def __call__(
        self,
        boxes: Array,
        axes: tuple[int, ...],
        grid: Grid | None = None,  # noqa: ARG002
        weights: Array | None = None,  # noqa: ARG002
    ) -> tuple[Array, Array]:
        """Return the given bounds in the shape of `boxes` reduced over `axes`."""
        xp = array_namespace(boxes)
        like = xp.zeros_like(xp.max(boxes, axis=axes, keepdims=True))
        return like + self.lowest, like + self.high

    @property
    def statistic(self) -> str | None:
        """What it wants to know of a static input."""
        return None

    def calibrated(self, seen: Any = None, grid: Grid | None = None) -> tuple[Array, Array]:  # noqa: ARG002
        """Return the given bounds."""
        return np.asarray(self.lowest, np.float32), np.asarray(self.high, np.float32)
