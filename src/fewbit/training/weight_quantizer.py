"""The weight of a layer as its codes will stand for it, made anew at each access; gradients reach the float weight.

Behind a BatchNorm the rounding is that of the folded weight: w' = Q(w f) / f, f = g / sqrt(v + e) by the averages.
"""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.box_bounds import bounds_of
from fewbit.formats.integer import Int
from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.layers import module_class
from fewbit.frontends.torch.product_mode import mark_weight
from fewbit.numerics.groups import beside_boxes, counts, merge, split, spread
from fewbit.numerics.namespace import to_float32
from fewbit.numerics.rounding import flushed
from fewbit.qtensor import QTensor, fake_quantize, quantize
from fewbit.schemes.scheme import Scheme
from fewbit.training.options import Training
from fewbit.training.schedule import Schedule
from fewbit.training.trained_range import TrainedRange

#: A gain smaller than this is left out of the folding: what it multiplies is 0 whatever the weight.
_LEAST_GAIN = 2.0**-60
#: How far from its level, in steps, a weight may begin; at a half any other scale would take it to the next.
_INSIDE = 0.4


class WeightQuantizer(nn.Module):
    """Rounds the weight of one module: a parametrization of it."""

    def __init__(self, module: nn.Module, scheme: Scheme, training: Training, schedule: Schedule) -> None:
        super().__init__()
        self.scheme = scheme
        self.convolution = Convolution.of(module)
        self.turned = module_class(module) == "Conv1D"
        self.momentum = training.momentum
        self._schedule = (schedule,)
        #: The BatchNorm that the layer is folded with at the end; not a part of this module.
        self.norm: tuple[nn.Module, ...] = ()
        matrix = self.matrix(module.weight.detach())  # type: ignore[operator]
        self.shape = tuple(matrix.shape)
        self.box = scheme.granularity.box(self.shape)
        kind = training.kind(weight=True)
        self.range: TrainedRange | None = None
        if scheme.has_range and kind != "each":
            shape = tuple(size for n in counts(self.shape, self.box) for size in (n, 1))
            self.range = TrainedRange(scheme.grid, training.gradient, kind, shape, schedule).to(matrix.device)

    def begin(self, weight: Tensor) -> None:
        """Take the range from the weight as it is now."""
        if self.range is not None:
            self.range.start(*self._bounds(self.folded(self.matrix(weight.detach()).float())))

    @torch.no_grad()
    def adopt(self, weight: Tensor, qtensor: QTensor) -> None:
        """Begin with what a solver has found: its scales as the range, and weights that round to its levels.

        Under integers these are the points nearest to the float weights, so that a small step may still change a code.
        """
        levels, scale = qtensor.dequantize(), beside_boxes(qtensor.scale_values())
        if self.range is not None:
            self.range.start(*self._ends(scale, qtensor.zero_point))
        if self.range is not None and isinstance(self.scheme.format, Int):
            reach = merge(scale.expand_as(split(levels, self.box)), self.shape) * _INSIDE
            levels = torch.clamp(self.folded(self.matrix(weight).float()), levels - reach, levels + reach)
        weight.copy_(self.arranged(self._unfolded(levels)))

    def _ends(self, scale: Tensor, zero: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the bounds that a scale and a zero point stand for."""
        grid = self.scheme.grid
        if zero is None:
            return -scale * grid.format.reach, scale * grid.format.reach
        zero = beside_boxes(zero).float()
        return (grid.integer.qmin - zero) * scale, (grid.integer.qmax - zero) * scale

    def matrix(self, weight: Tensor) -> Tensor:
        """Return the weight as (out, in)."""
        if self.convolution is not None:
            return self.convolution.matrix(weight)
        return weight.T if self.turned else weight

    def arranged(self, matrix: Tensor) -> Tensor:
        """Undo `matrix`."""
        if self.convolution is not None:
            return self.convolution.weight(matrix)
        return matrix.T if self.turned else matrix

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight rounded, in its shape and type."""
        with torch.autocast(weight.device.type, enabled=False):
            matrix = self.matrix(weight).float()
            rounded = self._unfolded(self._rounded(self.folded(matrix)))
            found = self.arranged(self._schedule[0].rounded(matrix, rounded)).to(weight.dtype)
        if not torch.compiler.is_compiling():  # where modes are on, nothing is compiled
            mark_weight(found)
        return found

    def distance(self, weight: Tensor) -> Tensor:
        """Return the mean squared distance of the float weight from its levels, in units of the scale."""
        matrix = self.folded(self.matrix(weight).float())
        found = self.qtensor(weight)
        step = spread(found.scale_values(), self.shape, self.box)
        distance: Tensor = ((matrix - found.dequantize()) / step).square().mean()
        return distance

    @torch.no_grad()
    def qtensor(self, weight: Tensor) -> QTensor:
        """Return the codes of the weight, folded with its BatchNorm if it has one, as (out, in)."""
        matrix = self.folded(self.matrix(weight).float())
        if self.range is None:
            return quantize(matrix, self.scheme)
        scale, zero = self.range.settled()
        boxes = split(to_float32(matrix), self.box)
        number = counts(self.shape, self.box)
        stored = None if zero is None else self.scheme.grid.integer.to_codes(zero.reshape(number))
        return QTensor(
            codes=merge(self.scheme.grid.codes(boxes, scale, zero), self.shape),
            scale=scale.reshape(number),
            zero_point=stored,
            scheme=self.scheme,
        )

    def folded(self, matrix: Tensor) -> Tensor:
        """Return the weight (out, in) of the layer and the BatchNorm behind it."""
        return matrix * self._gain()[:, None] if self.norm else matrix

    def _unfolded(self, matrix: Tensor) -> Tensor:
        return matrix / self._gain()[:, None] if self.norm else matrix

    def _gain(self) -> Tensor:
        norm: Any = self.norm[0]
        gain = torch.rsqrt(norm.running_var.float() + norm.eps)
        gain = gain if norm.weight is None else gain * norm.weight.float()
        return torch.where(gain.abs() < _LEAST_GAIN, torch.ones_like(gain), gain)

    def _rounded(self, matrix: Tensor) -> Tensor:
        if self.range is None:
            straight: Tensor = fake_quantize(matrix, self.scheme)
            return straight
        if self.range.kind == "average" and self.training:
            self.range.observe(*self._bounds(matrix.detach()), self.momentum)
        found: Tensor = merge(self.range(split(flushed(matrix), self.box), prod(self.box)), self.shape)
        return found

    def _bounds(self, matrix: Tensor) -> tuple[Tensor, Tensor]:
        assert self.range is not None
        scheme = self.scheme.searched() if self.range.kind == "learned" else self.scheme
        return bounds_of(matrix, self.box, scheme, None, None)

    def extra_repr(self) -> str:
        """Return the notation, for `print(model)`."""
        return str(self.scheme)
