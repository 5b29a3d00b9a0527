"""The two levels around each weight under scales that are fixed: what a learned rounding chooses between.

w lies at lower + share (upper - lower); a weight on a level, or beyond all of them, has that one only. Levels are those
of any format: integers around a zero point or above a minimum, floats, codebooks, learned tables. # weight: (out, in)
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit.formats.integer import Int
from fewbit.numerics.groups import spread
from fewbit.qtensor import QTensor


@dataclass(frozen=True, slots=True)
class Neighbours:
    """Codes below and above each weight, all (out, in)."""

    #: A quantized weight with the scales in question.
    start: QTensor
    #: Codes as they are stored.
    lower: Tensor
    upper: Tensor
    #: Where the weight lies between them, float32 in [0, 1]; 0 where there is one level only.
    share: Tensor

    @classmethod
    def of(cls, weight: Tensor, start: QTensor) -> Neighbours:
        """Return the levels around `weight` under the scales of `start`."""
        place, shift = _places(weight.to(torch.float32), start)
        form = start.scheme.format
        if isinstance(form, Int):
            low, high = ((part + shift).clamp(form.qmin, form.qmax) for part in (place.floor(), place.ceil()))
            share = (place + shift - low).clamp(0.0, 1.0)
            return cls(start, form.to_codes(low), form.to_codes(high), torch.where(high > low, share, 0.0))
        tables = start.codebook if start.codebook is not None else place.new_tensor(form.levels)[None]
        tables = tables.expand(len(place), -1).contiguous()
        last = tables.shape[1] - 1
        # Levels of a learned table may repeat: the first of those that are equal has the code.
        above = torch.searchsorted(tables, place).clamp(max=last)
        reached = (torch.searchsorted(tables, place, right=True) - 1).clamp(min=0)
        below = torch.searchsorted(tables, tables.gather(1, reached))
        low, high = tables.gather(1, below), tables.gather(1, above)
        gap = (high - low).clamp(min=torch.finfo(torch.float32).tiny)
        share = torch.where(high > low, ((place - low) / gap).clamp(0.0, 1.0), 0.0)
        if start.codebook is not None:
            return cls(start, below.to(start.codes.dtype), above.to(start.codes.dtype), share)
        return cls(start, form.encode(low), form.encode(high), share)

    def values(self) -> tuple[Tensor, Tensor]:
        """Return what the lower and the upper codes stand for, float32."""
        lower, upper = (replace(self.start, codes=codes).dequantize() for codes in (self.lower, self.upper))
        return lower, upper

    def chosen(self, up: Tensor) -> QTensor:
        """Return the weight with the upper code where `up`, else the lower one."""
        return replace(self.start, codes=torch.where(up, self.upper, self.lower))


def _places(weight: Tensor, start: QTensor) -> tuple[Tensor, Tensor | float]:
    """Return where weights lie in units of their scales, and the whole number that codes are moved by."""
    shape, scheme = start.shape, start.scheme
    box = scheme.granularity.box(shape)
    scale = spread(start.scale_values(), shape, box)
    # A group of zeros in a file of blocks may have the scale 0: every level is 0 there.
    inverse = 1.0 / torch.where(scale == 0.0, 1.0, scale)
    if (minimum := start.minimum_values()) is not None:
        return (weight - spread(minimum, shape, box)) * inverse, 0.0
    if start.zero_point is None:
        return weight * inverse, 0.0
    zero = spread(start.zero_point, shape, box).to(torch.float32)
    return (weight * inverse + zero, 0.0) if scheme.float_zero else (weight * inverse, zero)
