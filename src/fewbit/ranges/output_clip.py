"""AWQ's clipping: extremes shrunk to where rounding leaves the least error of a layer's output, box by box.

min over f of sum over rows r of the box (w_r - q_r) H (w_r - q_r)^T, with H the second moment of the inputs that the
columns of the box meet. Source: Lin et al. 2023, arXiv 2306.00978, and its authors' code, which samples the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewbit.errors import SchemeError
from fewbit.numerics.namespace import Array, array_namespace, settled
from fewbit.numerics.summation import tree_sum
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.grid import Grid
from fewbit.ranges.minmax import MinMax
from fewbit.ranges.search import Best, Search


@dataclass(frozen=True, slots=True)
class OutputClip:
    """Search the shrink factor of each box of a weight by what it does to the output; without inputs, the extremes."""

    #: Factors that are tried besides 1.
    steps: int = 20
    #: The least factor.
    smallest: float = 0.5

    def __post_init__(self) -> None:
        if not (self.steps >= 1 and 0.0 < self.smallest < 1.0):
            raise SchemeError(f"clip needs steps >= 1 and a smallest factor inside (0, 1), not {self}")

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return "clip"

    def __call__(
        self,
        boxes: Array,
        axes: tuple[int, ...],
        grid: Grid,
        weights: Array | None = None,  # noqa: ARG002
    ) -> tuple[Array, Array]:
        """Return the extremes: nothing is known of any input."""
        return (AbsMax() if grid.symmetric else MinMax())(boxes, axes)

    @property
    def statistic(self) -> str | None:
        """What it wants to know of a static input: it has no range for one."""
        return None

    def calibrated(self, seen: Any, grid: Grid) -> tuple[Array, Array]:  # noqa: ARG002
        """Raise: an activation meets no weight."""
        raise SchemeError(f"{self.name} ranges weights by the error of the output, not activations; use mse")

    @property
    def input_statistic(self) -> str:
        """What it wants to know of the inputs that the weight meets; every row of them counts alike."""
        return "relative_second_moment"

    def for_inputs(self, boxes: Array, grid: Grid, moments: Array) -> tuple[Array, Array]:
        """Return the best bounds found for a matrix in boxes (n0, b0, n1, b1); never worse than the extremes.

        `moments` (n1, b1, b1) are the second moments of the inputs of each run of columns.
        """
        low, high = self(boxes, (1, 3), grid)
        low, high, _ = _OutputSearch(boxes, (1, 3), grid, moments).shrunk(low, high, self.steps, self.smallest)
        return low, high


class _OutputSearch(Search):
    """Trial bounds by the error of the output; the weights are second moments."""

    __slots__ = ()

    def start(self, low: Array, high: Array) -> Best:
        """Return bounds with their error."""
        boxes, moments = self.boxes, self.weights
        assert moments is not None
        xp = array_namespace(boxes)
        errors = settled(self.grid.rounded(boxes, *self.grid.parameters(low, high))) - boxes
        rows, height, columns, width = boxes.shape
        apart = xp.reshape(xp.permute_dims(errors, (2, 0, 1, 3)), (columns, rows * height, width))
        product = xp.reshape(apart * xp.matmul(apart, moments), (columns, rows, height, width))
        summed = xp.reshape(tree_sum(product, (2, 3)), (columns, rows))
        return low, high, xp.reshape(summed.T, (rows, 1, columns, 1))
