"""AWQ: columns that large inputs meet are scaled up before they are rounded, by what leaves the least output error.

f_j = mean|x_j|^r, or mean|x_j|^r / mean|w_j|^(1 - r) with weights as shares of the largest of their group; r on a grid
that holds 0 and 1, and no factor at all. Source: Lin et al. 2023, arXiv 2306.00978, section 3.2, and its authors' code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fewbit.errors import RecipeError
from fewbit.numerics.namespace import to_float32, to_numpy
from fewbit.schemes.scheme import Scheme
from fewbit.transforms.link import Factors, Link
from fewbit.transforms.output_error import OutputError
from fewbit.transforms.scope import Rescaled, Rounded, Scope, chosen_links, starved

#: What the grid starts without: no input or weight is so small a share of the others that its factor overflows.
_LEAST = 1e-4


@dataclass(frozen=True, slots=True)
class Awq:
    """Scale by the inputs that the quantized blocks before give; what counts is the error of the consumers' outputs."""

    #: Links are rescaled.
    verb: ClassVar[str] = "rescaled"
    #: Means of inputs and errors of outputs are measured.
    needs_data: ClassVar[bool] = True
    #: Steps of the grid from 0 to 1.
    steps: int = 20
    #: Try factors with the weights' own magnitudes too.
    weights: bool = True

    def __post_init__(self) -> None:
        if type(self.steps) is not int or self.steps < 1:
            raise RecipeError(f"awq: steps {self.steps!r:.80} is no number of steps; 20 is usual")
        if not isinstance(self.weights, bool):
            raise RecipeError(f"awq: weights = {self.weights!r:.80} is not true or false")

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "awq"

    def problem(self, schemes: Mapping[str, Rounded]) -> str | None:
        """Return that no weight is rounded to a scale, if so."""
        if any(own.weight.scaled for own in schemes.values()):
            return None
        return "awq scales columns for weights that are rounded to a scale, and none is; leave it out"

    def rescaled(self, scope: Scope, schemes: Mapping[str, Rounded]) -> Sequence[Rescaled]:
        """Rescale every link where that leaves less error."""
        scaled = {name: own for name, own in schemes.items() if own.weight.scaled}
        leaders = chosen_links(scope, scaled)
        names = ("channel_magnitude", "row_sample")
        seen = scope.statistics(dict.fromkeys(leaders, names)) if leaders else {}
        done = []
        for leader, link in leaders.items():
            if leader not in seen:
                continue
            if left := starved(scope, link, leader, seen[leader]):
                done.append(left)
                continue
            weights = [(scope.weight(name), scaled[name]) for name in link.consumers if name in scaled]
            found = self._chosen(link, weights, seen[leader])
            if found is not None:
                setting, factors = found
                done.append(Rescaled(link, scope.rescale(link, factors), setting))
        return done

    def _chosen(
        self, link: Link, weights: Sequence[tuple[Any, Rounded]], statistics: Mapping[str, Any]
    ) -> tuple[str, Factors] | None:
        """Return the factors of the producer with the least error, `None` where none are better than no factors."""
        _, mean = statistics["channel_magnitude"].result()
        inputs = link.gathered(mean, _mean, unread=0.0)
        columns = link.gathered(np.mean([_shares(own, rounded.weight) for own, rounded in weights], axis=0), _mean)
        error = OutputError(statistics["row_sample"].result(), weights)
        best, found = error(np.ones(len(link.channels))), None
        for setting, factors in self._trials(inputs, columns):
            own = error(link.spread(factors))
            if own < best:
                best, found = own, (setting, factors)
        return found

    def _trials(self, inputs: Factors, columns: Factors) -> list[tuple[str, Factors]]:
        trials = []
        for step in range(self.steps + 1):
            ratio = step / self.steps
            trials.append((f"ratio {ratio:.2f}", factors_of(inputs, columns, (ratio, 0.0))))
            if self.weights and ratio < 1.0:  # with 1 they are the same
                trials.append((f"ratio {ratio:.2f} by weights", factors_of(inputs, columns, (ratio, 1.0 - ratio))))
        return trials[1:]  # the first is no factor at all


def factors_of(inputs: Factors, columns: Factors, powers: tuple[float, float]) -> Factors:
    """Return inputs^p / columns^q by channel for `powers` (p, q), their middle at 1; a channel without inputs keeps 1.

    >>> factors_of(np.asarray([4.0, 1.0, 0.0]), np.asarray([1.0, 1.0, 1.0]), (1.0, 0.0)).tolist()
    [2.0, 0.5, 1.0]
    """
    live = inputs > 0
    if not live.any():
        return np.ones(len(inputs))
    relative, own = (np.maximum(part / part[live].max(), _LEAST) for part in (inputs, columns))
    factors = relative ** powers[0] / own ** powers[1]
    middle = np.sqrt(factors[live].max() * factors[live].min())
    found: Factors = np.where(live, factors / middle, 1.0)
    return found


def _mean(values: Factors) -> Factors:
    found: Factors = values.mean(axis=0)
    return found


def _shares(weight: Any, scheme: Scheme) -> Factors:
    """Return the mean over rows of |w| as a share of the largest in its group, (in,)."""
    values = np.abs(to_numpy(to_float32(weight)).astype(np.float64))
    size = min(scheme.granularity.box(values.shape)[-1], values.shape[1])
    starts = np.arange(0, values.shape[1], size)
    largest = np.repeat(np.maximum.reduceat(values, starts, axis=1), size, axis=1)[:, : values.shape[1]]
    found: Factors = (values / np.where(largest > 0, largest, 1.0)).mean(axis=0)
    return found
