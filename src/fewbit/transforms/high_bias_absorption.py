"""High-bias absorption: max(0, y) = max(0, y - c) + c where y > c, so c goes into the next layer: b1 -= c, b2 += W2 c.

c = max(0, m - n s) of a channel that a BatchNorm made normal with mean m and deviation s; below c lie 0.1 % of its
numbers for n = 3. Source: Nagel et al. 2019, arXiv 1906.04721, section 4.1.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from fewbit.errors import RecipeError
from fewbit.transforms.link import Factors, Link
from fewbit.transforms.scope import Rescaled, Rounded, Scope

#: Why nothing was absorbed where the output did not stay what it was.
NO_SHIFT = "what reads it does not add the same for every position, as a convolution that pads with zeros"
#: Roundings by which outputs may differ in the proof: raised numbers are larger than what counts in the end.
ROUNDINGS = 2.0**14
#: Why nothing was absorbed where there is nothing to absorb from or into.
NO_BIAS = "it or what reads it has no bias"


@dataclass(frozen=True, slots=True)
class HighBiasAbsorption:
    """Absorb along links from layers that a BatchNorm was folded into; after equalization."""

    #: Biases move along links.
    verb: ClassVar[str] = "absorbed"
    #: BatchNorms tell how high biases are.
    needs_data: ClassVar[bool] = False
    #: How many standard deviations below its mean a channel is cut.
    deviations: float = 3.0

    def __post_init__(self) -> None:
        number = isinstance(self.deviations, int | float) and not isinstance(self.deviations, bool)
        if not number or not 0.0 <= self.deviations < float("inf"):
            raise RecipeError(
                f"high-bias-absorption: deviations {self.deviations!r:.80} is no number from 0; 3 is usual"
            )

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "high-bias-absorption"

    def problem(self, schemes: Mapping[str, Rounded]) -> str | None:
        """Return that no input is rounded, if so."""
        if any(own.input is not None and own.input.scaled for own in schemes.values()):
            return None
        return "high-bias-absorption narrows the ranges of inputs, and no rule rounds one to a scale; leave it out"

    def rescaled(self, scope: Scope, schemes: Mapping[str, Rounded]) -> Sequence[Rescaled]:
        """Absorb along the links to layers that are rounded, where something is known of the producer's output."""
        links = [link for link in scope.links if any(name in schemes for name in link.consumers)]
        return [self._absorbed(scope, link) for link in links if link.producer in scope.layers]

    def _absorbed(self, scope: Scope, link: Link) -> Rescaled:
        ones, known = np.ones(link.outputs), scope.known.get(link.producer)
        if known is None or known.width != link.outputs:
            return Rescaled(link, ones, "", left="no BatchNorm that was folded into it tells of its output")
        shift = np.where(link.read, known.certain(self.deviations), 0.0)
        if not shift.any():
            return Rescaled(link, ones, "", left=f"no channel lies {self.deviations:g} deviations above 0")
        found = scope.absorb(link, shift)
        if isinstance(found, str):
            return Rescaled(link, ones, "", left=found)
        return Rescaled(link, ones, f"up to {shift.max():.3g}", shift=shift, change=found)


def trial_of(link: Link, largest: float) -> tuple[Factors, Factors] | None:
    """Return what raises the biases of a producer above every shift that is tried, and such a shift, both (outputs,).

    `largest` is the largest magnitude that the producer puts out; `None` where it puts out nothing to shift.
    """
    if not 0.0 < largest < float("inf"):
        return None
    shift = np.where(link.read, np.random.RandomState(0).uniform(0.1, 0.5, link.outputs) * largest, 0.0)
    return np.full(link.outputs, 1.5 * largest), shift
