"""Where the values of each channel lie, as far as a BatchNorm tells: a normal distribution, cut off at bounds.

[clip(mean - n deviation, low, high), clip(mean + n deviation, low, high)]; a sum has the sum of means and of variances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import reduce

import torch
from torch import Tensor

#: Points that a function of one number is tried at, to find where it is least and largest.
_POINTS = 257


@dataclass(frozen=True, slots=True)
class ChannelRange:
    """All float32, (channels,) or () for all of them."""

    mean: Tensor
    deviation: Tensor
    low: Tensor
    high: Tensor

    @classmethod
    def normal(cls, mean: Tensor, deviation: Tensor) -> ChannelRange:
        """Return the range of normal numbers."""
        infinite = torch.full_like(mean, torch.inf)
        return cls(mean, deviation, -infinite, infinite)

    @classmethod
    def unknown(cls) -> ChannelRange:
        """Return the range of numbers of which nothing is known."""
        return cls.normal(torch.tensor(0.0), torch.tensor(torch.inf))

    @classmethod
    def between(cls, low: Tensor, high: Tensor, reach: float) -> ChannelRange:
        """Return the range from `low` to `high`, which `reach` deviations end at."""
        return cls((low + high) / 2, (high - low) / (2 * reach), low, high)

    @property
    def known(self) -> bool:
        """Whether it ends."""
        low, high = self.extent(1.0)
        return bool(low.isfinite().all() & high.isfinite().all())

    def extent(self, reach: float) -> tuple[Tensor, Tensor]:
        """Return the ends of the range, `reach` deviations from the mean."""
        span = reach * self.deviation
        ends = (self.mean - span, self.mean + span)
        return ends[0].clamp(self.low, self.high), ends[1].clamp(self.low, self.high)

    def clamped(self, low: float, high: float) -> ChannelRange:
        """Return the range of what is clipped to these bounds."""
        return replace(self, low=self.low.clamp(low, high), high=self.high.clamp(low, high))

    def plus(self, other: ChannelRange) -> ChannelRange:
        """Return the range of the sum of independent numbers."""
        return ChannelRange(
            self.mean + other.mean,
            torch.hypot(self.deviation, other.deviation),
            self.low + other.low,
            self.high + other.high,
        )

    def times(self, other: ChannelRange, reach: float) -> ChannelRange:
        """Return the range of the product."""
        products = [a * b for a in self.extent(reach) for b in other.extent(reach)]
        low, high = reduce(torch.minimum, products), reduce(torch.maximum, products)
        return ChannelRange.between(low, high, reach)

    def scaled(self, factor: float) -> ChannelRange:
        """Return the range of the numbers times `factor`."""
        ends = (self.low, self.high) if factor >= 0 else (self.high, self.low)
        return ChannelRange(self.mean * factor, self.deviation * abs(factor), ends[0] * factor, ends[1] * factor)

    def through(self, function: Callable[[Tensor], Tensor], reach: float) -> ChannelRange:
        """Return the range of a function of each number, looked for at points between the ends."""
        low, high = self.extent(reach)
        share = torch.linspace(0.0, 1.0, _POINTS).reshape(-1, *(1 for _ in low.shape))
        values = function(low + (high - low) * share)
        return ChannelRange.between(values.amin(0), values.amax(0), reach)

    def whole(self, reach: float) -> ChannelRange:
        """Return the range of all channels together."""
        low, high = self.extent(reach)
        return ChannelRange.between(low.min(), high.max(), reach)

    def spread(self, channels: int) -> ChannelRange:
        """Return the range with a place for each of `channels`."""
        return ChannelRange(*(own.expand(channels) for own in (self.mean, self.deviation, self.low, self.high)))
