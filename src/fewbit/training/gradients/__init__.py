"""Catalogue of gradients: how a loss reaches the numbers behind rounded ones, and the ranges that they are rounded by.

Each fulfils `fewbit.interfaces.gradient.Gradient`, on PyTorch and on JAX alike.
"""

from __future__ import annotations

from typing import Any

from fewbit.catalogue import parse_entry
from fewbit.interfaces.gradient import Gradient, Parameters

__all__ = ["GRADIENTS", "Gradient", "Parameters", "parse_gradient"]

#: Entries are module:attribute strings, imported when first used; adding a gradient is one line here.
GRADIENTS = {
    "straight-through": "fewbit.training.gradients.straight_through:StraightThrough",
    "lsq": "fewbit.training.gradients.lsq:LearnedStep",
    "pact": "fewbit.training.gradients.pact:LearnedClipping",
    "ewgs": "fewbit.training.gradients.ewgs:ElementWise",
}


def parse_gradient(value: str | dict[str, Any] | Gradient) -> Gradient:
    """Return the gradient for a name, a table with `name` and options, or a gradient.

    >>> parse_gradient({"name": "ewgs", "delta": 0.2})
    ElementWise(delta=0.2)
    """
    made: Gradient = parse_entry(value, GRADIENTS, what="gradient", example="lsq")
    return made
