"""AdaRound: learn whether each weight goes up or down, by the error of its layer's output; the scales stay.

min over V of tr((W'(V) - W) H (W'(V) - W)^T) + lambda sum(1 - |2 h(V) - 1|^beta), W' between the levels around W by
h(V) in [0, 1], beta falling until every h is 0 or 1; `asymmetric`: |W' x' - W x|^2. Source: arXiv 2004.10568.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fewbit.algorithms.annealing import Annealing
from fewbit.algorithms.few_rows import few_rows
from fewbit.algorithms.output_moment import output_moment
from fewbit.algorithms.solution import Solution, in_framework_of
from fewbit.errors import MissingExtraError, RecipeError, SchemeError
from fewbit.numerics.namespace import Array
from fewbit.qtensor import quantize
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class AdaRound(Annealing):
    """Learned rounding of each layer for its own output, under the scales of the range method."""

    #: Steps by Adam; 0 rounds to nearest.
    steps: int = 1000
    #: What a rounding between up and down costs at most, in mean errors of a weight that is rounded to nearest.
    regularization: float = 30.0
    #: Round for the output that the layer has in the float model, on inputs that have drifted behind quantized layers;
    #: `None`: where the float model can run beside the quantized one.
    asymmetric: bool | None = None

    def __post_init__(self) -> None:
        Annealing.__post_init__(self)
        if self.asymmetric is not None and not isinstance(self.asymmetric, bool):
            raise RecipeError(f"adaround: asymmetric = {self.asymmetric!r:.80} is not true or false")

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "adaround"

    @property
    def statistics(self) -> tuple[str, ...]:
        """The second moment of the layer's input, and how far it has drifted."""
        names = ("second_moment", *([] if self.asymmetric is False else ["input_drift"]))
        return tuple(f"relative_{name}" for name in names) if self.relative else names

    @property
    def unpaired(self) -> AdaRound:
        """The form for a model that has no float one beside it."""
        return replace(self, asymmetric=False) if self.asymmetric is None else self

    def __call__(self, weight: Array, statistics: Any, scheme: Scheme) -> Solution:
        """Return `weight` (out, in) with each code that of the level below or above it.

        No row has a larger error than rounded to nearest, on the inputs that the statistics have seen.

        Raises:
            SchemeError: the scheme has more than 8 bits.
            NonFiniteError: the second moment is not finite.
            MissingExtraError: torch is not installed.

        """
        if problem := self.problem(scheme):
            raise SchemeError(problem)
        block, remarks = output_moment(statistics, scheme)
        nearest = Solution(quantize(weight, scheme, moment=block), remarks=remarks)
        moment: Any = (statistics or {}).get(self.statistics[0])
        if why := few_rows(moment, weight.shape[1]):
            return replace(nearest, remarks=(*remarks, why))
        try:
            from fewbit.algorithms.column_loop import as_torch
            from fewbit.algorithms.drifted_inputs import DRIFT_UNKNOWN
            from fewbit.algorithms.layer_rounding import rounded_for
            from fewbit.numerics.instructions import halves
        except ImportError as error:
            raise MissingExtraError(f"adaround needs {error.name}; pip install 'fewbit[torch]'") from error
        values = as_torch(weight)
        wanted = self.asymmetric is not False
        drift: Any = statistics.get(self.statistics[-1]) if wanted else None
        known = drift is not None and drift.count > 0
        found = rounded_for(
            values,
            nearest.qtensor.map(as_torch),
            as_torch(moment.result()).to(values.device),
            self,
            halved=halves(self.precision, values.device.type),
            drift=as_torch(drift.result()).to(values.device) if known else None,
        )
        if wanted and not known:
            remarks = (*remarks, DRIFT_UNKNOWN)
        return replace(nearest, qtensor=in_framework_of(weight, found), remarks=remarks)
