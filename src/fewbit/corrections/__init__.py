"""What repairs a rounded model, one paper a file: a callable frozen dataclass each, by name in recipes.

A correction moves the bias of a layer once its weight is rounded; it sees arrays and statistics, never a model.
"""

from __future__ import annotations

from typing import Any, Protocol

from fewbit.catalogue import parse_entry
from fewbit.numerics.namespace import Array

#: Corrections by name.
CORRECTIONS = {
    "bias": "fewbit.corrections.bias:CorrectBias",
}


class Correction(Protocol):
    """A repair of one layer, behind the corrected ones before it."""

    @property
    def name(self) -> str:
        """The word for it in recipes."""

    @property
    def statistic(self) -> str:
        """What it has to know of the layer's input, behind quantized layers, and of its output in the float model."""

    def __call__(self, weight: Array, given: Any, wanted: Any) -> Array:
        """Return the bias (out,) for the rounded `weight` (out, in), by the statistics of its input and its output."""


def parse_correction(value: str | dict[str, Any] | Correction) -> Correction:
    """Return the correction for a name, a table with `name` and options, or a correction.

    >>> parse_correction("bias").name
    'bias'
    """
    made: Correction = parse_entry(value, CORRECTIONS, what="correction", example="bias")
    return made
