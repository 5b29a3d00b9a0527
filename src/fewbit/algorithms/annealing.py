"""How roundings become hard while they are trained: the options that AdaRound and its block form share.

lambda sum(1 - |2 h - 1|^beta), with beta falling from 20 to 2 as a half cosine once a share of the steps is over.
Source: AdaRound, arXiv 2004.10568, equation 24.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from fewbit.algorithms.rounding_options import RoundingOptions
from fewbit.errors import RecipeError
from fewbit.schemes.scheme import Scheme

#: The exponent at first, which pulls only at what is almost decided, and in the end.
_FIRST, _LAST = 20.0, 2.0
#: Between which numbers each option lies.
_RANGES = {"regularization": (0.0, 1e6), "warm": (0.0, 0.9), "reach": (0.1, 1e3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Annealing(RoundingOptions):
    """A schedule of steps by Adam, and of what pulls roundings to 0 or 1."""

    #: Steps by Adam, for each layer or block; 0 leaves the start as it is.
    steps: int
    #: What a rounding between up and down costs at most.
    regularization: float
    #: The share of the steps before that counts.
    warm: float = 0.2
    #: How far the steps of a variable go together; 2.4 are from the middle to up or down.
    reach: float = 10.0

    def __post_init__(self) -> None:
        RoundingOptions.__post_init__(self)
        if type(self.steps) is not int or self.steps < 0:
            raise RecipeError(f"{self.name}: steps {self.steps!r:.80} is no number of them; leave it out for the usual")
        for name, (least, most) in _RANGES.items():
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int | float) or not least <= given <= most:
                raise RecipeError(
                    f"{self.name}: {name} {given!r:.80} is outside [{least:g}, {most:g}]; leave it out for the usual"
                )

    @property
    def rate(self) -> float:
        """How far a step goes."""
        return self.reach / max(self.steps, 1)

    def exponent(self, step: int) -> float | None:
        """Return beta in a step, counted from 0; `None` while nothing pulls."""
        begin = self.warm * self.steps
        if step < begin:
            return None
        through = (step - begin) / max(self.steps - begin, 1.0)
        return _LAST + (_FIRST - _LAST) * (1.0 + math.cos(math.pi * through)) / 2.0

    def problem(self, scheme: Scheme) -> str | None:
        """Return why it cannot quantize to `scheme`, with the remedy, or `None`."""
        if scheme.scaled and scheme.format.bits <= 8:
            return None
        return f"{self.name} learns between the levels of up to 8 bits, not of '{scheme}'; use int8 or less, or nearest"
