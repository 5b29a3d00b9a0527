"""The extremes of each batch, averaged over the batches of a calibration: for static inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.numerics.namespace import Array
from fewbit.ranges.grid import Grid
from fewbit.ranges.minmax import MinMax


@dataclass(frozen=True, slots=True)
class Average:
    """Cover what is usual for a batch; on one array it is `minmax`."""

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return "average"

    def __call__(
        self, boxes: Array, axes: tuple[int, ...], grid: Grid | None = None, weights: Array | None = None
    ) -> tuple[Array, Array]:
        """Return the extremes over `axes`, widened to hold 0."""
        return MinMax()(boxes, axes, grid, weights)

    @property
    def statistic(self) -> str:
        """What it wants to know of a static input."""
        return "moving_average"

    def calibrated(self, seen: Any, grid: Grid | None = None) -> tuple[Array, Array]:  # noqa: ARG002
        """Return the averaged extremes, widened to hold 0."""
        low, high = seen.result()
        return np.asarray(min(low, 0.0), np.float32), np.asarray(max(high, 0.0), np.float32)
