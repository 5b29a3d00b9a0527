"""A statistic in parts: the batches of each part are summed apart, and the sums merged in the order of the samples.

((p_0 + p_1) + p_2) + ...: what float32 makes of it depends on the size of a part, and not on who has summed which.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

#: Batches of a part.
PART = 8


@dataclass(frozen=True, slots=True)
class Parts:
    """How the batches of a calibration are divided."""

    #: Batches of a part.
    size: int = PART
    #: Whether parts are kept apart, for someone who has the others to merge them.
    apart: bool = False
    #: The number of the first batch at hand, the first of a part.
    first: int = 0


@dataclass(slots=True)
class Partials:
    """One statistic, of which no more than the sum so far and the part in progress are in memory, unless kept apart."""

    parts: Parts
    #: By the number of the part, in the order of samples; merged ones are under the first number.
    kept: dict[int, Any] = field(default_factory=dict)
    _last: int = -1

    def of(self, batch: int, make: Callable[[], Any]) -> Any:
        """Return the statistic that takes in batch number `batch`; `make` gives an empty one. Batches come in order."""
        number = (self.parts.first + batch) // self.parts.size
        if number != self._last:
            if not self.parts.apart:
                self._merge()
            self.kept[number], self._last = make(), number
        return self.kept[number]

    def whole(self) -> Any:
        """Return the statistic of all batches; of parts that are kept apart these partials."""
        if self.parts.apart:
            return self
        self._merge()
        return next(iter(self.kept.values()))

    def _merge(self) -> None:
        if self.kept:
            self.kept = {next(iter(self.kept)): merged(list(self.kept.values()))}


def merged(statistics: Sequence[Any]) -> Any:
    """Return the first of some statistics, with the others merged into it in their order."""
    first, *others = statistics
    for other in others:
        first.merge(other)
    return first
