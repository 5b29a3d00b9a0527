"""Round to nearest: every weight goes to the closest level, ties to the even code.

codes = encode(weight / scale); needs no data. The base line of every other algorithm. Weighted, scales are searched for
the least sum of h_j (w_j - q_j)^2, h being the diagonal of the second moment of the inputs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fewbit.algorithms.solution import Solution
from fewbit.errors import RecipeError
from fewbit.numerics.namespace import Array, array_namespace, device, to_numpy
from fewbit.qtensor import quantize
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.minmax import MinMax
from fewbit.ranges.squared_error import SquaredError
from fewbit.schemes.scheme import Scheme

#: What every column counts besides, as a share of the mean: those that no input reached are rounded too.
_LEAST = 0.01


@dataclass(frozen=True, slots=True)
class Nearest:
    """Round each weight on its own."""

    #: Search scales, weighted by what goes into the layer; a range method that the scheme names stays.
    weighted: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.weighted, bool):
            raise RecipeError(f"nearest: weighted = {self.weighted!r:.80} is not true or false")

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "nearest"

    @property
    def statistics(self) -> tuple[str, ...]:
        """None, or second moments, each token counting alike."""
        return ("relative_second_moment",) if self.weighted else ()

    def __call__(self, weight: Array, statistics: Any, scheme: Scheme) -> Solution:
        """Return `weight` (out, in) rounded to the nearest levels, its scales by `statistics` if weighted."""
        if not self.weighted:
            return Solution(quantize(weight, scheme))
        moment = (statistics or {}).get(self.statistics[0])
        if moment is None or not moment.count:
            return Solution(quantize(weight, scheme), remarks=("no calibration input reached it: not weighted",))
        searching = isinstance(scheme.ranging, AbsMax | MinMax)
        searched = replace(scheme, range_method=SquaredError()) if searching else scheme
        found = quantize(weight, searched, importance_of(moment.result(), weight))
        return Solution(replace(found, scheme=scheme))


def importance_of(moment: Array, weight: Array) -> Array:
    """Return what errors of the columns of `weight` (out, in) count, float32 (in,) with a mean of 1.

    `moment` is (in, in); of a convolution in groups (groups, in, in), and the result (out, in).
    """
    xp, own = array_namespace(weight), to_numpy(moment)
    diagonal = own.diagonal(axis1=-2, axis2=-1).astype("float64")
    mean = diagonal.mean(axis=-1, keepdims=True)
    shares = diagonal / (mean + (mean == 0)) + _LEAST
    if own.ndim == 3:
        shares = shares.repeat(weight.shape[0] // own.shape[0], axis=0)
    return xp.asarray(shares.astype("float32"), device=device(weight))
