"""What block algorithms are before their blocks are trained: the algorithm that solves each layer first."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from fewbit.algorithms import Algorithm, parse_algorithm
from fewbit.algorithms.solution import Solution
from fewbit.errors import SchemeError
from fewbit.numerics.namespace import Array
from fewbit.schemes.scheme import Scheme


class Started:
    """An algorithm for layers alone, by its option `start`."""

    __slots__ = ()
    start: str | dict[str, Any] | Algorithm

    @property
    def first(self) -> Algorithm:
        """The algorithm that `start` names."""
        return parse_algorithm(self.start)

    @property
    def statistics(self) -> tuple[str, ...]:
        """What the start asks for; where that is nothing, means, whose count says whether to train an expert."""
        return self.first.statistics or ("mean",)

    @abstractmethod
    def problem(self, scheme: Scheme) -> str | None:
        """Return why it cannot quantize to `scheme`, with the remedy, or `None`."""

    def __call__(self, weight: Array, statistics: Any, scheme: Scheme) -> Solution:
        """Return `weight` (out, in) as the start solves it; `statistics` are those that it asks for.

        Raises:
            SchemeError: the block algorithm cannot quantize to `scheme`.

        """
        if problem := self.problem(scheme):
            raise SchemeError(problem)
        return self.first(weight, statistics, scheme)
