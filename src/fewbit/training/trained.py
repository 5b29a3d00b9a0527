"""What stands in a plan for the algorithm of a layer whose codes come out of training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NoReturn

from fewbit.errors import PlanError
from fewbit.numerics.namespace import Array
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Trained:
    """Codes by the gradient called `gradient`."""

    gradient: str

    @property
    def name(self) -> str:
        """The word for it in reports."""
        return f"training, {self.gradient}"

    @property
    def statistics(self) -> tuple[str, ...]:
        """It needs none."""
        return ()

    def problem(self, scheme: Scheme) -> str | None:
        """Return why weights of `scheme` cannot be trained, with the remedy, or `None`."""
        if scheme.learned:
            return f"{scheme.format.name} learns its levels once, from trained weights, not while they train; use nf4"
        return None

    def under(self, scheme: Scheme | None) -> Trained:
        """Return the same as it is for `scheme`: where there is no range to learn, gradients go straight through."""
        return self if scheme is None or scheme.has_range else Trained("straight-through")

    def __call__(self, weight: Array, statistics: Any, scheme: Scheme) -> NoReturn:  # noqa: ARG002
        """Raise: the codes are those of the training."""
        raise PlanError("a plan for training has no codes before it; use fewbit.prepare_qat and fewbit.finish_qat")
