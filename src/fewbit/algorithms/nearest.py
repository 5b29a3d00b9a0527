"""Round to nearest: every weight goes to the closest level, ties to the even code.

codes = encode(weight / scale); needs no data, but for ranges that look at the output. The base line of every other.
Weighted, scales are searched for the least sum of h_j (w_j - q_j)^2, h being the diagonal of the inputs' second moment.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fewbit.algorithms.importance import importance_of, importance_of_squares
from fewbit.algorithms.output_moment import output_moment
from fewbit.algorithms.solution import Solution
from fewbit.errors import RecipeError
from fewbit.numerics.namespace import Array
from fewbit.qtensor import quantize
from fewbit.ranges.least_squares import LeastSquares
from fewbit.ranges.span_search import SpanSearch
from fewbit.ranges.squared_error import SquaredError
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Nearest:
    """Round each weight on its own."""

    #: Search scales, weighted by what goes into the layer; a range method that the scheme names stays.
    weighted: bool = False
    #: Let every token count alike, however large its activations; otherwise as an importance matrix has it.
    relative: bool = True

    def __post_init__(self) -> None:
        for flag in ("weighted", "relative"):
            if not isinstance(getattr(self, flag), bool):
                raise RecipeError(f"nearest: {flag} = {getattr(self, flag)!r:.80} is not true or false")
        if not (self.weighted or self.relative):
            raise RecipeError("nearest: relative = false says how to weigh; add weighted = true, or leave it out")

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "nearest"

    @property
    def statistics(self) -> tuple[str, ...]:
        """None, or second moments, each token counting alike, or mean squares as they are."""
        own = "relative_second_moment" if self.relative else "mean_square"
        return (own,) if self.weighted else ()

    def problem(self, scheme: Scheme) -> str | None:
        """Return why weights would change nothing, with the remedy, or `None`."""
        searches = scheme.learned or isinstance(scheme.searched().ranging, SquaredError | LeastSquares | SpanSearch)
        if not self.weighted or (scheme.scaled and searches):
            return None
        return f"nearest weighs the search of scales, and '{scheme}' has none; leave out weighted, or use mse"

    def __call__(self, weight: Array, statistics: Any, scheme: Scheme) -> Solution:
        """Return `weight` (out, in) rounded to the nearest levels, its scales by `statistics` if weighted.

        Ranges may look at `statistics` of the input too.
        """
        if not self.weighted:
            block, remarks = output_moment(statistics, scheme)
            return Solution(quantize(weight, scheme, moment=block), remarks=remarks)
        seen: Any = (statistics or {}).get(self.statistics[0])
        if unknown := "nothing is known of its input" if seen is None else seen.too_few:
            return Solution(quantize(weight, scheme), remarks=(f"{unknown}: not weighted",))
        importance = importance_of if self.relative else importance_of_squares
        found = quantize(weight, scheme.searched(), importance(seen.result(), weight))
        return Solution(replace(found, scheme=scheme))
