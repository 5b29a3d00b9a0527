"""Histograms and error bars as the numbers and paths of SVG, which the page's template puts into elements.

Heights are densities, counts divided by the width of their bin: the grey area of the weights and the outline of the
codes, each level as wide as what is rounded to it, enclose the same area.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from fewbit.evaluation.input_profile import InputProfile
from fewbit.evaluation.level_histogram import LevelHistogram, axis
from fewbit.report.layer_report import LayerReport

#: Height of a histogram in units of its own.
HEIGHT = 200
#: Up to so many levels are drawn through the whole height, more only below it.
_FEW_LEVELS = 32
#: Labels of an axis, at most.
_LABELS = 9


@dataclass(frozen=True, slots=True)
class Scale:
    """The axis below the histograms of layers that have the same levels; x runs over the bins."""

    #: Number of bins: the width of the drawing.
    bins: int
    #: A mark at each level, of height 1.
    marks: str
    #: Whether marks go through the whole height.
    few: bool
    #: Labels with their place in percent of the width.
    labels: tuple[tuple[str, str], ...]


def scale_of(levels: tuple[float, ...]) -> Scale:
    """Return the axis of `levels`.

    >>> scale_of((-1.0, 0.0, 1.0)).labels[1]
    ('0', '50')
    """
    start, width, bins = axis(levels)
    places = [_place(level, start, width) for level in levels]
    labels = ((_short(value), _short(100 * _place(value, start, width) / bins)) for value in _labelled(levels))
    return Scale(bins, "".join(f"M{_short(place)} 0v1" for place in places), len(levels) <= _FEW_LEVELS, tuple(labels))


def weights_path(histogram: LevelHistogram) -> str:
    """Return the area of the weights."""
    top = _top(histogram)
    return _area([_height(count / histogram.width, top) for count in histogram.weights])


def inputs_path(profile: InputProfile) -> str:
    """Return the area of what goes into a layer."""
    top = max(*profile.bins, 1)
    return _area([_height(count, top) for count in profile.bins])


def own_labels(profile: InputProfile) -> tuple[tuple[str, str], ...]:
    """Return the labels of an axis without levels, with their places in percent: both ends, and 0 where there is room.

    >>> from fewbit.evaluation.input_profile import input_profile
    >>> import numpy as np
    >>> own_labels(input_profile(np.asarray([[-1.0, 3.0]], np.float32), None))
    (('-1', '6'), ('0', '25.31'), ('3', '94'))
    """
    bins = len(profile.bins)
    last = profile.start + (bins - 1) * profile.width
    labels = [(f"{profile.start:.3g}", "6"), (f"{last:.3g}", "94")]
    place = 100 * _place(0.0, profile.start, profile.width) / bins
    if 20 < place < 80:
        labels.insert(1, ("0", _short(place)))
    return tuple(labels)


def _area(heights: Sequence[int]) -> str:
    """Return the area below steps of these heights, one bin wide each."""
    runs: list[list[int]] = []
    for height in heights:
        if runs and runs[-1][0] == height:
            runs[-1][1] += 1
        else:
            runs.append([height, 1])
    return f"M0 {HEIGHT}" + "".join(f"V{height}h{count}" for height, count in runs) + f"V{HEIGHT}z"


def codes_path(histogram: LevelHistogram) -> str:
    """Return the outline of the codes; empty where they were not counted."""
    if histogram.codes is None:
        return ""
    top, borders = _top(histogram), _borders(histogram.levels)
    places = [_short(_place(border, histogram.start, histogram.width)) for border in borders]
    steps = (
        f"V{_height(density, top)}H{right}"
        for density, right in zip(_code_densities(histogram), places[1:], strict=True)
    )
    return f"M{places[0]} {HEIGHT}" + "".join(steps) + f"V{HEIGHT}"


@dataclass(frozen=True, slots=True)
class Bar:
    """An error as a bar, and as a line what the rows of a weight make of it; in percent of the longest."""

    length: str
    #: From the tenth of the rows with the least error to the one with the most; `None` where nobody counted rows.
    rows: tuple[str, str] | None = None


def error(decibels: float) -> float:
    """Return the RMS error as a share of the RMS of the signal, from an SQNR in dB.

    >>> error(20.0), error(float("inf"))
    (0.1, 0.0)
    """
    return 10.0 ** (-decibels / 20.0) if decibels > -math.inf else math.inf


def longest(layers: Sequence[LayerReport]) -> float:
    """Return the largest finite error of weights, their rows and outputs: what a whole bar stands for."""
    ratios = [layer.weight_sqnr for layer in layers] + [layer.output_sqnr for layer in layers]
    ratios += [layer.row_sqnr[0] for layer in layers if layer.row_sqnr]
    errors = [error(ratio) for ratio in ratios if ratio is not None and not math.isnan(ratio)]
    return max((value for value in errors if 0.0 < value < math.inf), default=1.0)


def bar(decibels: float, whole: float, rows: tuple[float, float] | None = None) -> Bar:
    """Return the bar of an SQNR in dB where `whole` is the longest error."""
    return Bar(percent(decibels, whole), (percent(rows[1], whole), percent(rows[0], whole)) if rows else None)


def percent(decibels: float, whole: float) -> str:
    """Return the error of an SQNR in percent of the `whole`, no more than all of it."""
    return _short(100 * min(error(decibels) / whole, 1.0)) if not math.isnan(decibels) else "0"


def _top(histogram: LevelHistogram) -> float:
    return max(max(histogram.weights) / histogram.width, *_code_densities(histogram), 1.0)


def _code_densities(histogram: LevelHistogram) -> list[float]:
    if histogram.codes is None:
        return []
    widths = [right - left for left, right in pairwise(_borders(histogram.levels))]
    return [count / width for count, width in zip(histogram.codes, widths, strict=True)]


def _borders(levels: tuple[float, ...]) -> list[float]:
    """Return where what is rounded to each level begins and ends; the outer levels reach as far out as in."""
    middles = [(low + high) / 2 for low, high in pairwise(levels)]
    return [2 * levels[0] - middles[0], *middles, 2 * levels[-1] - middles[-1]]


def _height(density: float, top: float) -> int:
    """Return a place from the top; what is there at all is seen."""
    height = HEIGHT * density / top
    return HEIGHT - max(round(height), 1 if density else 0)


def _place(value: float, start: float, width: float) -> float:
    return (value - start) / width + 0.5


def _labelled(levels: tuple[float, ...]) -> Iterator[float]:
    """Yield the levels where they are few, else multiples of 1, 2 or 5 times a power of ten between the outer ones."""
    if len(levels) <= _LABELS:
        yield from levels
        return
    span = levels[-1] - levels[0]
    power = 10.0 ** math.floor(math.log10(span / _LABELS))
    step = next(power * digit for digit in (1, 2, 5, 10) if span / (power * digit) < _LABELS)
    for multiple in range(math.ceil(levels[0] / step), math.floor(levels[-1] / step) + 1):
        yield round(multiple * step, 12)


def _short(value: float) -> str:
    """Return a number with two decimals at most, and no minus before 0."""
    return f"{round(value, 2) + 0.0:.2f}".rstrip("0").rstrip(".")
