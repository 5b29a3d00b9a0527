"""What goes into a layer: how its numbers lie on the levels that they are rounded to, and which channels are large.

Numbers in units of the scale, u = x / scale + zero point, are counted as those of weights are. Extremes, channels and
what is clipped are of all rows; the bins, and scales that each row has for itself, of rows at equal distances.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fewbit.activation import Activation
from fewbit.evaluation.level_histogram import axis, counted, in_units, limits
from fewbit.numerics.namespace import Array, array_namespace, to_numpy
from fewbit.qtensor import quantize

#: Numbers that go into the bins, about.
_COUNTED = 1 << 14
#: Bins of numbers that have no levels.
_BINS = 80
#: A range in which float32 numbers have no bins: the reciprocal of a bin's width would be infinite.
_LEAST = 2.0**-119
#: Runs of channels that are told apart, at most, and channels that are named.
_RUNS, _NAMED = 64, 4
#: With more levels than these a picture shows none.
_MOST_LEVELS = 256

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class InputProfile:
    """What went into a layer in one batch of the float model."""

    #: Numbers that went in, and how many of those are in the bins.
    numbers: int
    counted: int
    low: float
    high: float
    #: What numbers are rounded to, in units of the scale; empty where they stay float or levels are too many to draw.
    levels: tuple[float, ...] = field(metadata={"listed": True})
    #: Middle of the first bin and the width of all, in units of the scale where there are levels.
    start: float
    width: float
    #: Numbers in each bin; the first and the last hold what lies beyond, too.
    bins: tuple[int, ...]
    #: Share of all numbers beyond a fixed range; `None` without one.
    clipped: float | None
    #: The largest magnitude of the median channel.
    median: float
    #: The largest magnitude of each run of neighbouring channels, in multiples of the median to four digits.
    channels: tuple[float, ...]
    #: Channels in a run; the last may have fewer.
    run: int
    #: The channels with the largest magnitudes, and these as such multiples.
    outliers: tuple[tuple[int, float], ...]


def input_profile(rows: Array, activation: Activation | None) -> InputProfile | None:
    """Return what `rows` (rows, channels) are under the rounding `activation`; `None` where there are no numbers.

    >>> found = input_profile(np.asarray([[1.0, -8.0], [0.5, 2.0]], np.float32), None)
    >>> found.low, found.outliers
    (-8.0, ((1, 1.7777777777777777), (0, 0.2222222222222222)))
    """
    if 0 in rows.shape:
        return None
    xp = array_namespace(rows)
    lows, highs = (
        to_numpy(xp.astype(own, xp.float32)).astype(np.float64) for own in (xp.min(rows, axis=0), xp.max(rows, axis=0))
    )
    step = max(1, -(-rows.shape[0] * rows.shape[1] // _COUNTED))
    some = to_numpy(xp.astype(rows[::step, :], xp.float32))
    levels, start, width, bins = _binned(some, activation)
    largest = np.maximum(-lows, highs)
    median = float(np.median(largest))
    shares = largest / median if median > 0.0 else np.zeros_like(largest)
    run = -(-len(shares) // _RUNS)
    order = np.argsort(-shares, kind="stable")[:_NAMED]
    return InputProfile(
        numbers=rows.shape[0] * rows.shape[1],
        counted=some.size,
        low=float(lows.min()),
        high=float(highs.max()),
        levels=levels,
        start=start,
        width=width,
        bins=bins,
        clipped=_clipped(rows, (lows, highs), activation),
        median=median,
        channels=tuple(float(f"{own:.4g}") for own in np.maximum.reduceat(shares, np.arange(0, len(shares), run))),
        run=run,
        outliers=tuple((int(place), float(shares[place])) for place in order),
    )


def _binned(some: Numbers, activation: Activation | None) -> tuple[tuple[float, ...], float, float, tuple[int, ...]]:
    """Return levels, the middle of the first bin, the width of all, and the counts."""
    levels = _levels(activation)
    if activation is None or not levels:
        low, high = float(some.min()), float(some.max())
        width = (high - low) / (_BINS - 1) if high - low > _LEAST else 1.0
        counts = np.bincount(np.clip((some.ravel() - low) / width + 0.5, 0, _BINS - 1).astype(np.intp), minlength=_BINS)
        return (), low, width, tuple(counts.tolist())
    if activation.scale is None:
        units = list(in_units(some, quantize(some, activation.scheme)))
    else:
        zero = 0.0 if activation.zero_point is None else to_numpy(activation.zero_point)
        units = [some / to_numpy(activation.scale) + zero]
    start, width, bins = axis(levels)
    return levels, start, width, tuple(counted(units, start, width, bins).tolist())


def _levels(activation: Activation | None) -> tuple[float, ...]:
    if activation is None or not activation.scheme.scaled or activation.scheme.fixes_unit:
        return ()
    levels = activation.scheme.format.levels
    return levels if len(levels) <= _MOST_LEVELS else ()


def _clipped(rows: Array, extremes: tuple[Numbers, Numbers], activation: Activation | None) -> float | None:
    """Return the share of numbers more than half a step beyond the outer levels of a fixed range."""
    if activation is None or activation.scale is None or activation.scheme.fixes_unit:
        return None
    zero = 0.0 if activation.zero_point is None else to_numpy(activation.zero_point)
    low, high = ((limit - zero) * to_numpy(activation.scale) for limit in limits(activation.scheme.format.levels))
    if bool(np.all(extremes[0] >= low) and np.all(extremes[1] <= high)):
        return 0.0
    xp = array_namespace(rows)
    bounds = [xp.asarray(np.asarray(bound, np.float32)) for bound in (low, high)]
    if hasattr(rows, "device"):
        bounds = [xp.asarray(bound, device=rows.device) for bound in bounds]
    beyond = int(xp.sum(xp.astype((rows < bounds[0]) | (rows > bounds[1]), xp.int64)))
    numbers: int = rows.shape[0] * rows.shape[1]
    return beyond / numbers
