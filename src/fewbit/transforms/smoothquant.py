"""SmoothQuant: outliers of the inputs move into the weights, where a channel has its share of many rows.

f_j = max|x_j|^alpha / max|w_j|^(1 - alpha), inputs divided by it and columns multiplied. Source: Xiao et al. 2022,
arXiv 2211.10438, section 4. The search of alpha for each link by its consumers' output error is ours.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from fewbit.errors import RecipeError
from fewbit.numerics.namespace import array_namespace, to_float32, to_numpy
from fewbit.transforms.link import Factors, Link
from fewbit.transforms.output_error import OutputError
from fewbit.transforms.scope import Rescaled, Rounded, Scope, chosen_links, starved

#: What `alpha = "search"` tries, besides leaving a link alone.
_GRID = tuple(step / 10 for step in range(11))


@dataclass(frozen=True, slots=True)
class SmoothQuant:
    """Scale the channels of rounded inputs down, and the columns that read them up."""

    #: Links are rescaled.
    verb: ClassVar[str] = "rescaled"
    #: Largest inputs are measured.
    needs_data: ClassVar[bool] = True
    #: How much of the range of the inputs moves, from 0 to 1; `search` tries eleven for each link.
    alpha: float | Literal["search"] = 0.5

    def __post_init__(self) -> None:
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if self.alpha != "search" and not (number and 0.0 <= float(self.alpha) <= 1.0):
            raise RecipeError(f'smoothquant: alpha {self.alpha!r:.80} is neither in [0, 1] nor "search"; 0.5 is usual')

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "smoothquant"

    def problem(self, schemes: Mapping[str, Rounded]) -> str | None:
        """Return that no input is rounded, if so."""
        if any(_smoothed(own) for own in schemes.values()):
            return None
        return (
            "smoothquant takes outliers out of rounded inputs, and no rule rounds an input to a scale; "
            'add for example input = "int8", or use awq'
        )

    def rescaled(self, scope: Scope, schemes: Mapping[str, Rounded]) -> Sequence[Rescaled]:
        """Rescale every link whose consumers' inputs are rounded."""
        smoothed = {name: own for name, own in schemes.items() if _smoothed(own)}
        leaders = chosen_links(scope, smoothed)
        names = ["channel_magnitude", *(["row_sample"] if self.alpha == "search" else [])]
        seen = scope.statistics(dict.fromkeys(leaders, names)) if leaders else {}
        done = []
        for leader, link in leaders.items():
            if leader not in seen:
                continue
            if left := starved(scope, link, leader, seen[leader]):
                done.append(left)
                continue
            found = self._chosen(scope, link, smoothed, seen[leader])
            if found is not None:
                alpha, factors = found
                done.append(Rescaled(link, scope.rescale(link, factors), f"alpha {alpha:.2f}"))
        return done

    def _chosen(
        self, scope: Scope, link: Link, smoothed: Mapping[str, Rounded], statistics: Mapping[str, Any]
    ) -> tuple[float, Factors] | None:
        """Return alpha and the factors of the producer; `None` where the search finds none that helps."""
        weights = {name: scope.weight(name) for name in link.consumers}
        largest, _ = statistics["channel_magnitude"].result()
        inputs = link.gathered(largest, np.maximum.reduce, unread=0.0)
        columns = link.gathered(np.maximum.reduce([_columns(own) for own in weights.values()]), np.maximum.reduce)
        if self.alpha != "search":
            return self.alpha, factors_of(inputs, columns, self.alpha)
        rounded = [(weights[name], smoothed[name]) for name in link.consumers if name in smoothed]
        error = OutputError(statistics["row_sample"].result(), rounded)
        trials = {alpha: factors_of(inputs, columns, alpha) for alpha in _GRID}
        errors = {alpha: error(link.spread(factors)) for alpha, factors in trials.items()}
        best = min(errors, key=lambda alpha: errors[alpha])
        return (best, trials[best]) if errors[best] < error(np.ones(len(link.channels))) else None


def factors_of(inputs: Factors, columns: Factors, alpha: float) -> Factors:
    """Return the factors for the largest magnitudes of inputs and columns by channel, their middle at 1.

    A channel without inputs or without weights keeps 1.

    >>> factors_of(np.asarray([64.0, 1.0, 0.0]), np.asarray([1.0, 1.0, 1.0]), 0.5).round(3).tolist()
    [2.828, 0.354, 1.0]
    """
    live = (inputs > 0) & (columns > 0)
    if not live.any():
        return np.ones(len(inputs))
    factors = np.where(live, inputs, 1.0) ** alpha / np.where(live, columns, 1.0) ** (1.0 - alpha)
    middle = np.sqrt(factors[live].max() * factors[live].min())
    found: Factors = np.where(live, factors / middle, 1.0)
    return found


def _smoothed(rounded: Rounded) -> bool:
    return rounded.input is not None and rounded.input.scaled


def _columns(weight: Any) -> Factors:
    found: Factors = to_numpy(array_namespace(weight).max(abs(to_float32(weight)), axis=0)).astype(np.float64)
    return found
