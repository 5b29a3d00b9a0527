"""Scales, and minima if there are any, found for all columns of a span at once, in the form in which they are stored.

min over scales and minima as stored of sum w (x - x')^2: the grids of GGUF. No bounds come of it: a scale may be
negative, and one that is quantized itself depends on its neighbours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from fewbit.errors import SchemeError
from fewbit.numerics.namespace import Array
from fewbit.ranges.grid import Grid


@dataclass(frozen=True, slots=True)
class SpanSearch:
    """Search the scales of each span."""

    #: How often the codes of scales and their units are improved in turn.
    sweeps: int = 2

    def __post_init__(self) -> None:
        if self.sweeps < 0:
            raise SchemeError(f"sweeps {self.sweeps} is no number of times; 2 is usual, 0 leaves descent out")

    @property
    def name(self) -> str:
        """The word for it; the names of whole schemes imply it."""
        return "span"

    def __call__(
        self,
        boxes: Array,  # noqa: ARG002
        axes: tuple[int, ...],  # noqa: ARG002
        grid: Grid,  # noqa: ARG002
        weights: Array | None = None,  # noqa: ARG002
    ) -> NoReturn:
        """Raise: there are no bounds."""
        raise SchemeError("scales of a span are found with their codes, not from bounds: use fewbit.qtensor.quantize")

    @property
    def statistic(self) -> None:
        """Inputs are not quantized so."""
        return

    def calibrated(self, seen: Any, grid: Grid) -> NoReturn:  # noqa: ARG002
        """Raise: inputs are not quantized so."""
        raise SchemeError("scales of a span are for weights; give inputs another scheme, such as int8")
