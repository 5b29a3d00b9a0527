"""Catalogue of gradients: how a loss reaches the numbers behind rounded ones, and the ranges that they are rounded by.

A gradient works on boxes (n0, b0, n1, b1, ...) of `fewbit.numerics.groups` and parameters that broadcast to them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

from fewbit.catalogue import parse_entry
from fewbit.numerics.namespace import Array
from fewbit.ranges.grid import Grid

#: Entries are module:attribute strings, imported when first used; adding a gradient is one line here.
GRADIENTS = {
    "straight-through": "fewbit.training.gradients.straight_through:StraightThrough",
    "lsq": "fewbit.training.gradients.lsq:LearnedStep",
    "pact": "fewbit.training.gradients.pact:LearnedClipping",
    "ewgs": "fewbit.training.gradients.ewgs:ElementWise",
}
#: By name what the gradient of a range learns.
Parameters = Mapping[str, Array]


class Gradient(Protocol):
    """How rounding passes gradients on."""

    @property
    def name(self) -> str:
        """The word for it."""

    @property
    def learns(self) -> bool:
        """Whether ranges are parameters of the training."""

    def initial(self, low: Array, high: Array, grid: Grid) -> Parameters:
        """Return what is trained, or kept, of the bounds `low <= 0 <= high`."""

    def settled(self, parameters: Parameters, grid: Grid) -> tuple[Array, Array | None]:
        """Return the scale as it is stored, and the zero point as a float; gradients reach what is learned."""

    def __call__(self, boxes: Array, parameters: Parameters, grid: Grid, sharing: int) -> Array:
        """Return the numbers that the codes of `boxes` stand for; `sharing` numbers have a scale in common."""


def parse_gradient(value: str | dict[str, Any] | Gradient) -> Gradient:
    """Return the gradient for a name, a table with `name` and options, or a gradient.

    >>> parse_gradient({"name": "ewgs", "delta": 0.2})
    ElementWise(delta=0.2)
    """
    made: Gradient = parse_entry(value, GRADIENTS, what="gradient", example="lsq")
    return made
