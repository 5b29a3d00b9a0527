"""One choice for each unit: what is to be small, what is limited, and what was chosen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fewbit.errors import PlanError

Table = Sequence[Sequence[float]]


@dataclass(frozen=True, slots=True)
class Selection:
    """The place of the choice of each unit."""

    choices: tuple[int, ...]
    #: How far its sum may be above the least one there is, as a share of it; `None`: not known.
    gap: float | None = None

    def sum(self, table: Table) -> float:
        """Return the sum of a table's numbers over the choices."""
        return sum(own[place] for own, place in zip(table, self.choices, strict=True))


def least(table: Table) -> float:
    """Return the least sum that any selection has."""
    return sum(min(own) for own in table)


def require_reachable(weights: Table, limit: float) -> None:
    """Raise `PlanError` where no selection stays within the limit."""
    lowest = least(weights)
    if lowest > limit:
        raise PlanError(
            f"no choice of candidates comes down to {limit:g}: the lowest is {lowest:g}; raise the budget, add "
            "candidates of fewer bits, or keep fewer layers"
        )
