"""The figures behind a drawing, few enough to be read: a histogram as runs of its axis with their shares in percent."""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.evaluation.input_profile import InputProfile
from fewbit.evaluation.level_histogram import LevelHistogram

#: Rows of a table, about.
_ROWS = 12


@dataclass(frozen=True, slots=True)
class Run:
    """A part of an axis, up to where the next one begins; shares in percent."""

    first: str
    share: str
    #: Of the codes; empty where they were not counted.
    codes: str = ""


def weight_figures(histogram: LevelHistogram) -> list[Run]:
    """Return the shares of weights and codes along the axis."""
    codes = None if histogram.codes is None else dict(zip(histogram.levels, histogram.codes, strict=True))
    return _runs(histogram.start, histogram.width, histogram.weights, codes)


def input_figures(profile: InputProfile) -> list[Run]:
    """Return the shares of inputs along the axis."""
    return _runs(profile.start, profile.width, profile.bins, None)


def _runs(start: float, width: float, counts: tuple[int, ...], codes: dict[float, int] | None) -> list[Run]:
    step = -(-len(counts) // _ROWS)
    total, coded = max(sum(counts), 1), max(sum((codes or {}).values()), 1)
    found = []
    for place in range(0, len(counts), step):
        own = counts[place : place + step]
        low, high = start + (place - 0.5) * width, start + (place + len(own) - 0.5) * width
        held = None if codes is None else sum(count for level, count in codes.items() if low <= level < high)
        shown = "" if held is None else f"{100 * held / coded:.3g}"
        found.append(Run(f"{low:.3g}", f"{100 * sum(own) / total:.3g}", shown))
    return found
