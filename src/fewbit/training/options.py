"""How a model is trained with rounding in the loop, as opposed to what becomes of its layers."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewbit.errors import RecipeError
from fewbit.training.gradients import Gradient, parse_gradient

#: Where ranges of weights and static inputs come from: the numbers of each step, an average over steps, the first step,
#: or a gradient.
Ranges = Literal["each", "average", "fixed", "learned"]
_RANGES = ("auto", "each", "average", "fixed")


@dataclass(frozen=True, slots=True, kw_only=True)
class Training:
    """Gradients, ranges and when what begins; a step is a forward of the model in training mode.

    >>> Training(gradient="ewgs", delay=100).gradient
    ElementWise(delta=0.2)
    """

    #: `lsq`, `pact`, `ewgs`, `straight-through`, a table with options, or a gradient. Schemes without a range to learn
    #: (blocks of GGUF, MX and NVFP4, dynamic inputs) go straight through, as the report says.
    gradient: Gradient = "lsq"  # type: ignore[assignment]  # parsed once, here
    #: For gradients that learn no range: `each` step's own, an `average`, `fixed` from the first; `auto` is `each` for
    #: weights and `average` for static inputs.
    ranges: str = "auto"
    #: How much of a step's range an average takes.
    momentum: float = 0.1
    #: Steps before anything is rounded; ranges are watched meanwhile.
    delay: int = 0
    #: The step from which ranges stay as they are, and the one from which BatchNorms use and keep their averages.
    freeze_ranges: int | None = None
    freeze_norms: int | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "gradient", parse_gradient(self.gradient))
        if self.ranges not in _RANGES:
            raise RecipeError(f"ranges {self.ranges!r:.80} are none of {', '.join(_RANGES)}")
        if self.gradient.learns and self.ranges != "auto":
            raise RecipeError(f"{self.gradient.name} learns ranges; leave out ranges={self.ranges!r}")
        if not isinstance(self.momentum, int | float) or not 0.0 < self.momentum <= 1.0:
            raise RecipeError(f"momentum {self.momentum!r:.80} is not in (0, 1]; 0.1 is usual")
        for name in ("delay", "freeze_ranges", "freeze_norms"):
            given = getattr(self, name)
            if not (given is None and name != "delay") and (type(given) is not int or given < 0):
                raise RecipeError(f"{name} {given!r:.80} is no number of steps")

    @property
    def counted(self) -> list[str]:
        """What of it hangs on the count of steps."""
        schedule = {"delay": self.delay or None, "freeze_ranges": self.freeze_ranges, "freeze_norms": self.freeze_norms}
        found = [f"{name}={own}" for name, own in schedule.items() if own is not None]
        return [*found, *(["ranges='average'"] if self.ranges == "average" else [])]

    def kind(self, *, weight: bool) -> Ranges:
        """Return where the ranges of weights, or of static inputs, come from."""
        if self.gradient.learns:
            return "learned"
        if self.ranges == "auto":
            return "each" if weight else "average"
        return self.ranges  # type: ignore[return-value]
