"""AutoRound for a layer by itself, where a model has no blocks that gradients reach: by the error of its own output.

min over v, a, b of tr((W' - W) H (W' - W)^T), whose gradient in W' is 2 (W' - W) H: the second moment H of the inputs
is all that it takes. Of every row the best state is kept. Source: SignRound, arXiv 2309.05516; H: GPTQ, 2210.17323.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from fewbit.algorithms.few_rows import few_rows
from fewbit.algorithms.solution import Solution, in_framework_of
from fewbit.errors import MissingExtraError, SchemeError
from fewbit.numerics.namespace import Array
from fewbit.schemes.scheme import Scheme

if TYPE_CHECKING:
    from fewbit.algorithms.autoround import AutoRound


@dataclass(frozen=True, slots=True)
class LayerAutoRound:
    """Trains the rounding of one layer by the sign of the gradient, from the solution of another algorithm."""

    #: Steps, start, reach and shares of it; samples, seed and precision play no part.
    options: AutoRound

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return self.options.name

    @property
    def statistics(self) -> tuple[str, ...]:
        """What the start asks for, and the second moment of the layer's input."""
        return tuple(dict.fromkeys((*self.options.first.statistics, self._moment)))

    def problem(self, scheme: Scheme) -> str | None:
        """Return why it cannot quantize to `scheme`, with the remedy, or `None`."""
        return self.options.problem(scheme)

    def __call__(self, weight: Array, statistics: Any, scheme: Scheme) -> Solution:
        """Return `weight` (out, in) trained from the start, which stays where no step does better.

        Raises:
            SchemeError: the scheme is not one of integers.
            NonFiniteError: the second moment is not finite.
            MissingExtraError: torch is not installed.

        """
        if problem := self.problem(scheme):
            raise SchemeError(problem)
        start = self.options.first(weight, statistics, scheme)
        moment: Any = (statistics or {}).get(self._moment)
        if why := few_rows(moment, weight.shape[1]):
            return replace(start, remarks=(*start.remarks, why))
        try:
            from fewbit.algorithms.column_loop import as_torch
            from fewbit.algorithms.signed_descent import descended
        except ImportError as error:
            raise MissingExtraError(f"autoround needs {error.name}; pip install 'fewbit[torch]'") from error
        given = start.qtensor.map(as_torch)
        found = descended(as_torch(weight), given, as_torch(moment.result()), self.options)
        return replace(start, qtensor=in_framework_of(weight, found))

    @property
    def _moment(self) -> str:
        """The second moment that the start uses, or that `relative` asks for."""
        own = [name for name in self.options.first.statistics if name.endswith("second_moment")]
        return own[0] if own else "relative_second_moment" if self.options.relative else "second_moment"
