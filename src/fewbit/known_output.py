"""What a BatchNorm tells of a layer's output without any data: each channel is normal with its shift and gain.

For y ~ N(m, s^2), a = (low - m) / s, b = (high - m) / s and z = min(max((y - m) / s, a), b):
E z = a P(a) + b (1 - P(b)) + p(a) - p(b). Source: Nagel et al. 2019, arXiv 1906.04721, appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from math import erfc, inf, prod
from typing import Any, TypeAlias

import numpy as np

#: Float64 numbers by channel.
Channels: TypeAlias = np.ndarray[Any, np.dtype[np.float64]]
#: Standard deviations beyond which there is no number of a normal distribution in float64.
_BEYOND = 38.0


@dataclass(frozen=True, slots=True, eq=False)
class KnownOutput:
    """Mean and variance of the numbers of each channel."""

    mean: Channels
    #: `None`: only the means are known, as behind a pooling, whose numbers vary less than those that it takes.
    variance: Channels | None
    #: |gamma| of the norm that says so, which the deviation is but for its epsilon: what ranges are made of. `None`: it
    #: is no norm's output any more.
    gain: Channels | None = field(default=None, repr=False)

    def clipped(self, low: float = 0.0, high: float = inf) -> KnownOutput | None:
        """Return what min(max(y, low), high) has, y being normal: ReLU, or ReLU6 with a `high` of 6.

        `None` where the variance is not known.

        >>> known = KnownOutput(np.asarray([0.0, 9.0]), np.asarray([1.0, 0.0])).clipped(0.0, 6.0)
        >>> known.mean.round(4).tolist(), known.variance.round(4).tolist()
        ([0.3989, 6.0], [0.3408, 0.0])
        """
        if self.variance is None:
            return None
        deviation = np.sqrt(self.variance)
        sure = deviation == 0.0
        scale = np.where(sure, 1.0, deviation)
        first, second = ((bound - self.mean) / scale for bound in (low, high))
        mean, square = _clipped_moments(np.clip(first, -_BEYOND, _BEYOND), np.clip(second, -_BEYOND, _BEYOND))
        # Where everything lies beyond a bound, moments beside the mean would be differences of large numbers.
        found = np.where(sure, self.mean, self.mean + deviation * mean)
        spread = np.where(sure, 0.0, self.variance * np.maximum(square - mean * mean, 0.0))
        below, above = first >= _BEYOND, second <= -_BEYOND
        spread = np.where(below | above, 0.0, spread)
        return KnownOutput(np.clip(np.where(below, low, np.where(above, high, found)), low, high), spread)

    def added(self, other: KnownOutput) -> KnownOutput:
        """Return what the sum with another output has that varies independently, as in a residual connection."""
        both = self.variance is not None and other.variance is not None
        return KnownOutput(self.mean + other.mean, self.variance + other.variance if both else None)  # type: ignore[operator]

    def divided(self, factors: Channels) -> KnownOutput:
        """Return what it has once channel c is divided by `factors[c]`."""
        return KnownOutput(
            self.mean / factors,
            None if self.variance is None else self.variance / factors**2,
            None if self.gain is None else self.gain / factors,
        )

    def less(self, shift: Channels) -> KnownOutput:
        """Return what it has once `shift[c]` is taken off channel c."""
        return replace(self, mean=self.mean - shift)

    def averaged(self) -> KnownOutput:
        """Return what averages over positions have: the means."""
        return KnownOutput(self.mean, None)

    def repeated(self, times: int) -> KnownOutput:
        """Return what it has with every channel there so many times, one after the other, as flattened positions."""
        variance = None if self.variance is None else np.repeat(self.variance, times)
        return KnownOutput(np.repeat(self.mean, times), variance)

    def certain(self, deviations: float) -> Channels:
        """Return what almost every number of a channel is above, 0 where that is below 0: max(0, m - n s)."""
        deviation = np.zeros_like(self.mean) if self.variance is None else np.sqrt(self.variance)
        return np.maximum(0.0, self.mean - deviations * deviation)

    @property
    def width(self) -> int:
        """How many channels there are."""
        return len(self.mean)


def joined(parts: Sequence[KnownOutput]) -> KnownOutput:
    """Return what the channels of `parts` have side by side."""
    known = [own.variance for own in parts if own.variance is not None]
    variance = np.concatenate(known) if len(known) == len(parts) else None
    return KnownOutput(np.concatenate([own.mean for own in parts]), variance)


def _clipped_moments(low: Channels, high: Channels) -> tuple[Channels, Channels]:
    """Return mean and mean square of a standard normal number kept between `low` and `high`."""
    below, above = _share_below(low), _share_below(-high)
    first, second = (np.exp(-0.5 * own * own) / np.sqrt(2.0 * np.pi) for own in (low, high))
    mean = low * below + high * above + first - second
    square = low * low * below + high * high * above + (1.0 - below - above) + low * first - high * second
    return mean, square


def _share_below(bound: Channels) -> Channels:
    """Return the share of a standard normal distribution below `bound`."""
    return np.asarray([0.5 * erfc(-float(own) / 2.0**0.5) for own in bound])


def regrouped(shape: Sequence[int], axis: int, other: Sequence[int]) -> tuple[int, int] | None:
    """Return where the channels along `axis` are once `shape` is seen as `other`, and how often each one is there.

    `None`: they are not along one axis any more.

    >>> regrouped((2, 8, 3, 3), 1, (2, 72)), regrouped((2, 8, 1, 1), 1, (2, 8)), regrouped((2, 8, 3, 3), 1, (144,))
    ((1, 9), (1, 1), None)
    """
    before, channels, behind = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
    for place, size in enumerate(other):
        times = size // channels if channels else 0
        if prod(other[:place]) == before and size == times * channels and times * prod(other[place + 1 :]) == behind:
            return place, times
    return None
