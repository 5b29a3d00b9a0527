"""A weight while its rounding is trained: offsets inside the rounding, factors on both ends of each range.

q = clip(round(w / s + v) + z), w' = s (q - z) with s = (b high - a low) / steps and z = qmin - a low / s. Gradients
pass straight through the roundings, and not through the clip. Source: SignRound, arXiv 2309.05516, equations 3 and 4.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fewbit.formats.scale_type import round_scale, round_zero_point
from fewbit.numerics.groups import beside_boxes, box_axes, merge, split
from fewbit.qtensor import QTensor

#: How near to the edge of its start's code a weight is put that belongs beyond it, in codes.
_MARGIN = 0.1
#: Between which factors the ends of a range stay.
_LEAST, _MOST = 0.3, 1.5


class TrialWeight:
    """Offsets and range factors of a weight (out, in); at first its value is that of the start."""

    def __init__(self, weight: Tensor, start: QTensor, *, ranges: bool) -> None:
        self.start = start
        self._box = start.scheme.granularity.box(start.shape)
        self._axes = box_axes(weight.ndim)
        self._values = split(weight.detach().to(torch.float32), self._box)
        self._scale = beside_boxes(start.scale_values())
        zero = torch.zeros_like(start.scale_values()) if start.zero_point is None else start.zero_point
        self._zero = beside_boxes(zero.to(torch.float32))
        self.offset = self._offset()
        ends = 2 if start.zero_point is not None else 1
        #: Factors of the upper and, where there is a zero point, of the lower end of each range.
        self.factors = [torch.ones_like(self._scale) for _ in range(ends if ranges else 0)]

    def value(self) -> Tensor:
        """Return the float32 weight (out, in) that the codes stand for."""
        scale, zero = self._ranges()
        value: Tensor = merge((self._whole(scale, zero).clamp(*self._limits) - zero) * scale, self.start.shape)
        return value

    def qtensor(self) -> QTensor:
        """Return codes, scale and zero point as they are stored."""
        scale, zero = self._ranges()
        form, start = self.start.scheme.grid.integer, self.start
        codes = form.to_codes(merge(self._whole(scale, zero).clamp(*self._limits), start.shape))
        kept = start.zero_point
        if kept is not None:
            kept = (zero if start.scheme.float_zero else form.to_codes(zero)).reshape(kept.shape)
        return replace(start, codes=codes, scale=scale.reshape(start.scale_values().shape), zero_point=kept)

    def move(self, gradient: Tensor, rate: float, range_rate: float) -> None:
        """Take a step against the sign of the gradient of each parameter, given that of the value (out, in).

        Offsets move by `rate`, factors by `range_rate`.
        """
        by_box = split(gradient.to(torch.float32), self._box)
        scale, zero = self._ranges()
        whole = self._whole(scale, zero)
        inside = (whole >= self._limits[0]) & (whole <= self._limits[1])
        slopes = self._slopes(by_box, scale, zero, whole, inside)
        # The scale is positive: the sign of an offset's gradient is that of the value's.
        self.offset.sub_(by_box.sign() * inside, alpha=rate)
        for factor, slope in zip(self.factors, slopes, strict=True):
            factor.sub_(slope.sign(), alpha=range_rate).clamp_(_LEAST, _MOST)

    def _offset(self) -> Tensor:
        """Return offsets that leave a weight where it is in its own code, and put others just inside of the start's."""
        codes = split(self.start.scheme.format.decode(self.start.codes), self._box)
        low, high = self._limits
        unbounded = torch.full((), float("inf"), device=codes.device)
        edge = 0.5 - _MARGIN
        # What lies beyond the codes has the outermost one without any offset.
        units = codes - self._zero
        lower = torch.where(codes > low, units - edge, -unbounded)
        upper = torch.where(codes < high, units + edge, unbounded)
        place = self._values / self._scale
        offset: Tensor = torch.minimum(torch.maximum(place, lower), upper) - place
        return offset

    @property
    def _limits(self) -> tuple[int, int]:
        form = self.start.scheme.grid.integer
        return form.qmin, form.qmax

    def _ranges(self) -> tuple[Tensor, Tensor]:
        """Return scale and zero point beside the boxes, rounded as they are stored."""
        if not self.factors:
            return self._scale, self._zero
        scheme, (qmin, qmax) = self.start.scheme, self._limits
        if len(self.factors) == 1:
            return round_scale(self._scale * self.factors[0], scheme.scale_type), self._zero
        # Counted in the start's codes, so that factors of 1 give its scale and zero point.
        low, high = self.factors[1] * (qmin - self._zero), self.factors[0] * (qmax - self._zero)
        scale = round_scale(self._scale * ((high - low) / (qmax - qmin)), scheme.scale_type)
        zero = qmin - low * (self._scale / scale)
        if scheme.float_zero:
            return scale, round_zero_point(zero.clamp(2 * qmin - qmax, 2 * qmax - qmin), scheme.scale_type)
        return scale, zero.round().clamp(qmin, qmax)

    def _whole(self, scale: Tensor, zero: Tensor) -> Tensor:
        """Return whole numbers, codes but that they may lie beyond them."""
        place: Tensor = self._values / scale + self.offset
        return (place + zero).round() if self.start.scheme.float_zero else place.round() + zero

    def _slopes(self, gradient: Tensor, scale: Tensor, zero: Tensor, whole: Tensor, inside: Tensor) -> list[Tensor]:
        """Return the gradients of the factors, given that of the value."""
        if not self.factors:
            return []
        units = whole.clamp(*self._limits) - zero
        of_scale = (gradient * (units - self._values / scale * inside)).sum(self._axes, keepdim=True)
        if len(self.factors) == 1:
            return [of_scale * self._scale]
        qmin, qmax = self._limits
        of_zero = -(gradient * ~inside).sum(self._axes, keepdim=True) * scale
        low = self._scale * (qmin - self._zero)
        by_high, by_low = self._scale * (qmax - self._zero) / (qmax - qmin), -low / (qmax - qmin)
        # z = qmin - a low / s, and s moves with both ends.
        through = self.factors[1] * low / scale.square()
        return [
            (of_scale + of_zero * through) * by_high,
            (of_scale + of_zero * through) * by_low - of_zero * low / scale,
        ]
