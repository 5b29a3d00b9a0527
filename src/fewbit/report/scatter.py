"""Points in a plane as numbers for SVG, places in percent: sizes to the right, errors upwards by factors of ten."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

#: Room at the sides, in percent, where labels and dots would be cut off.
_LEFT, _RIGHT, _TOP, _BOTTOM = 11.0, 6.0, 8.0, 12.0
#: The axis counts factors of ten where the largest value is so many times the least one.
_DECADES = 8.0


@dataclass(frozen=True, slots=True)
class Point:
    """What is to be drawn."""

    label: str
    x: float
    y: float
    #: Class of the dot: what sets it apart from others.
    style: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    """A point with its place in percent from the left and from the top."""

    point: Point
    left: str
    top: str
    #: Where its label starts: `start` or `end`.
    anchor: str


@dataclass(frozen=True, slots=True)
class Scatter:
    """A drawing: dots, ticks with their places, and the line through the points that no other is better than."""

    dots: tuple[Dot, ...]
    x_ticks: tuple[tuple[str, str], ...]
    y_ticks: tuple[tuple[str, str], ...]
    front: str


def scatter(points: Sequence[Point]) -> Scatter | None:
    """Return the drawing of the points with finite places; `None` of fewer than two."""
    shown = [own for own in points if math.isfinite(own.x) and math.isfinite(own.y)]
    if len(shown) < 2:
        return None
    across = _Axis.of([own.x for own in shown], _LEFT, 100 - _RIGHT, tens=False)
    upwards = _Axis.of([own.y for own in shown], 100 - _BOTTOM, _TOP, tens=True)
    dots = []
    for own in shown:
        left = across.place(own.x)
        dots.append(Dot(own, _percent(left), _percent(upwards.place(own.y)), "end" if left > 70 else "start"))
    best = [(_percent(across.place(own.x)), _percent(upwards.place(own.y))) for own in front(shown)]
    line = "M" + "L".join(f"{left} {top}" for left, top in best)
    return Scatter(tuple(dots), tuple(across.ticks()), tuple(upwards.ticks()), line)


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that no other one beats in both, from left to right.

    >>> [own.label for own in front([Point("a", 1, 3), Point("b", 2, 4), Point("c", 3, 1)])]
    ['a', 'c']
    """
    best: list[Point] = []
    for own in sorted(points, key=lambda own: (own.x, own.y)):
        if not best or own.y < best[-1].y:
            best.append(own)
    return best


@dataclass(frozen=True, slots=True)
class _Axis:
    low: float
    high: float
    start: float
    end: float
    tens: bool

    @classmethod
    def of(cls, values: Sequence[float], start: float, end: float, *, tens: bool) -> _Axis:
        low, high = min(values), max(values)
        if tens and low > 0 and high / low > _DECADES:
            return cls(math.log10(low), math.log10(high), start, end, tens=True)
        room = 0.04 * (high - low) or max(abs(high), 1.0) * 0.05
        return cls(min(max(low - room, 0.0), low), high + room, start, end, tens=False)

    def place(self, value: float) -> float:
        own = math.log10(value) if self.tens else value
        share = (own - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> Iterator[tuple[str, str]]:
        for value in self._tens() if self.tens else self._steps():
            yield f"{value:.4g}", _percent(self.place(value))

    def _tens(self) -> Iterator[float]:
        digits = (1, 2, 5) if self.high - self.low < 2.5 else (1,)
        for power in range(math.floor(self.low), math.ceil(self.high) + 1):
            for digit in digits:
                if self.low <= math.log10(digit * 10.0**power) <= self.high:
                    yield digit * 10.0**power

    def _steps(self) -> Iterator[float]:
        span = self.high - self.low
        power = 10.0 ** math.floor(math.log10(span / 5))
        step = next(power * digit for digit in (1, 2, 5, 10) if span / (power * digit) <= 6)
        for multiple in range(math.ceil(self.low / step), math.floor(self.high / step) + 1):
            yield round(multiple * step, 12)


def _percent(value: float) -> str:
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")
