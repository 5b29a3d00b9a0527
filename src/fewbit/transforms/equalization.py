"""Cross-layer equalization: the rows of a layer get the ranges of the columns that read them, without any data.

With r = max|row c| of the first and s = max|column c| of the second, f_c = sqrt(r / s): both become sqrt(r s). In
chains again and again until nothing moves. Source: Nagel et al. 2019, arXiv 1906.04721, section 4.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewbit.errors import RecipeError
from fewbit.transforms import Transform
from fewbit.transforms.link import Factors, Link
from fewbit.transforms.relu6 import ReplaceRelu6
from fewbit.transforms.scope import Rescaled, Rounded, Scope

#: Change of a factor below which a chain has settled.
_SETTLED = 1e-3


@dataclass(frozen=True, slots=True)
class Equalization:
    """Equalize along links from layer to layer; links from norms are not for it."""

    #: Links are rescaled.
    verb: ClassVar[str] = "rescaled"
    #: It looks at weights alone, and at a run on anything for the links.
    needs_data: ClassVar[bool] = False
    #: Passes over the links of a block or model, at most.
    rounds: int = 20
    #: Put ReLU where ReLU6 is first, which no factor passes: the model then computes something else, and the report
    #: says how far that takes its output.
    replace_relu6: bool = False

    def __post_init__(self) -> None:
        if type(self.rounds) is not int or self.rounds < 1:
            raise RecipeError(f"equalization: rounds {self.rounds!r:.80} is no number of passes; 20 is usual")
        if not isinstance(self.replace_relu6, bool):
            raise RecipeError(f"equalization: replace_relu6 = {self.replace_relu6!r:.80} is not true or false")

    @property
    def first(self) -> tuple[Transform, ...]:
        """What is done to the whole model before."""
        return (ReplaceRelu6(),) if self.replace_relu6 else ()

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "equalization"

    def problem(self, schemes: Mapping[str, Rounded]) -> str | None:
        """Return that no weight is rounded to a scale, if so."""
        if any(own.weight.scaled for own in schemes.values()):
            return None
        return "equalization evens out ranges of weights that share a scale, and no weight has one; leave it out"

    def rescaled(self, scope: Scope, schemes: Mapping[str, Rounded]) -> Sequence[Rescaled]:
        """Rescale the links between layers one of which is rounded."""
        links = [
            link
            for link in scope.links
            if link.producer in scope.layers and any(name in schemes for name in (link.producer, *link.consumers))
        ]
        whole = [np.ones(link.outputs) for link in links]
        for _ in range(self.rounds):
            moved = 0.0
            for number, link in enumerate(links):
                factors = scope.rescale(link, _factors(scope, link))
                whole[number] = whole[number] * factors
                moved = max(moved, float(np.abs(np.log(factors)).max()))
            if moved < _SETTLED:
                break
        return [Rescaled(link, own, f"up to {_spread(own):.1f}") for link, own in zip(links, whole, strict=True)]


def _factors(scope: Scope, link: Link) -> Factors:
    rows = scope.output_magnitudes(link.producer)
    columns = np.maximum.reduce([scope.input_magnitudes(name) for name in link.consumers])
    read = link.gathered(columns, np.maximum.reduce)
    used = link.read & (rows > 0) & (read > 0)
    factors: Factors = np.where(used, np.sqrt(np.where(used, rows, 1.0) / np.where(used, read, 1.0)), 1.0)
    return factors


def _spread(factors: Factors) -> float:
    """Return by what the most a channel was multiplied or divided."""
    return float(np.exp(np.abs(np.log(factors)).max()))
