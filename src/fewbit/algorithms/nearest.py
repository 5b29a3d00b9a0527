"""Round to nearest: every weight goes to the closest level, ties to the even code.

codes = encode(weight / scale); needs no data. The base line of every other algorithm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewbit.algorithms.solution import Solution
from fewbit.numerics.namespace import Array
from fewbit.qtensor import quantize
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Nearest:
    """Round each weight on its own."""

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "nearest"

    @property
    def statistics(self) -> tuple[str, ...]:
        """It needs none."""
        return ()

    def __call__(self, weight: Array, statistics: Any, scheme: Scheme) -> Solution:  # noqa: ARG002
        """Return `weight` (out, in) rounded to the nearest levels; `statistics` are not used."""
        return Solution(quantize(weight, scheme))
