"""Scales and zero points of the columns while GPTQ rounds them: fixed before, or chosen when a group is reached.

A chosen one leaves the least sum over columns of D_k (w_k - q_k)^2, which is what rounding column k costs.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fewbit.algorithms import columns
from fewbit.algorithms.column_order import Span
from fewbit.algorithms.column_spans import scale_and_zero
from fewbit.algorithms.hessian import Corner, Hessian
from fewbit.box_bounds import group_scales, searched_levels
from fewbit.formats.integer import Int
from fewbit.formats.scale_type import round_scale
from fewbit.numerics.groups import spread
from fewbit.qtensor import QTensor, quantize
from fewbit.ranges import OutputRange
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.minmax import MinMax
from fewbit.ranges.scale_levels import ScaleLevels
from fewbit.ranges.squared_error import SquaredError
from fewbit.schemes.granularity import PerChannel, PerGroup
from fewbit.schemes.scheme import Scheme

#: Shares of the scale that clips nothing that a search tries, before those between.
_FACTORS = tuple(1.07 - 0.06 * step for step in range(10))


@dataclass(frozen=True, slots=True)
class ColumnScales:
    """Parameters of the columns as they come, not as they are ordered."""

    #: float32 (out, n).
    scale: Tensor
    #: float32 (out, n); zeros for symmetric schemes.
    zero: Tensor
    #: int64 (in,): which of the n each column uses.
    index: Tensor

    @classmethod
    def open(cls, weight: Tensor, spans: list[Span]) -> ColumnScales:
        """Return parameters that are still to be chosen, one for each row and span of columns."""
        sizes = torch.tensor([stop - start for start, stop in spans])
        index = torch.arange(len(spans)).repeat_interleave(sizes).to(weight.device)
        scale = weight.new_ones(len(weight), len(spans))
        return cls(scale, torch.zeros_like(scale), index)

    @classmethod
    def of(cls, stored: QTensor) -> ColumnScales:
        """Return the parameters of a quantized weight of any granularity."""
        shape, scale = stored.shape, stored.scale_values()
        box = stored.scheme.granularity.box(shape)

        zero = stored.zero_point
        if stored.scheme.span is not None:
            scale, zero = scale_and_zero(stored)

        def by_column(part: Tensor | None) -> Tensor:
            if part is None:
                return torch.zeros(shape, device=scale.device)
            found: Tensor = spread(part.float(), shape, box).contiguous()
            return found

        return cls(by_column(scale), by_column(zero), torch.arange(shape[1], device=scale.device))

    def at(self, which: Tensor | slice) -> tuple[Tensor, Tensor, Tensor]:
        """Return scale and zero point (out, n), and which of the n each of some columns uses."""
        return self.scale, self.zero, self.index[which]

    def by_column(self, part: Tensor) -> Tensor:
        """Return `scale` or `zero` spread over the columns, (out, in)."""
        return part[:, self.index]

    def by_span(self, spans: list[Span]) -> ColumnScales:
        """Return the parameters of the first column of each span, for all of it."""
        first = self.index[[start for start, _ in spans]]
        return replace(self.open(self.scale, spans), scale=self.scale[:, first], zero=self.zero[:, first])


def own_scales(scheme: Scheme) -> bool:
    """Whether each row has scales of its own, for groups of columns or for all."""
    return scheme.granularity == PerChannel() or isinstance(scheme.granularity, PerGroup)


def plain_scales(scheme: Scheme) -> bool:
    """Whether those are kept as plain floats."""
    return own_scales(scheme) and scheme.scale_scheme is None and scheme.span is None


def units_of_scales(stored: QTensor) -> Tensor | None:
    """Return what scales that are quantized themselves are counted in, (out, groups); `None` for plain floats."""
    if not isinstance(stored.scale, QTensor):
        return None
    inner = stored.scale
    found: Tensor = spread(inner.scale_values(), inner.shape, inner.scheme.granularity.box(inner.shape))
    return found


def at_levels(scales: ColumnScales, stored: QTensor) -> QTensor:
    """Return the scales of whole groups as `stored` has them, that are levels in units of its own."""
    inner, unit = stored.scale, units_of_scales(stored)
    assert isinstance(inner, QTensor)
    assert unit is not None
    codes = ScaleLevels(inner.scheme.format).nearest(scales.scale, unit)
    return replace(inner, codes=codes.reshape(inner.shape))


def chosen_level(group: Tensor, corner: Corner, scheme: Scheme, unit: Tensor, *, search: bool) -> Tensor:
    """Return the scale (out,) for one group of columns (out, k), a level counted in `unit` (out,)."""
    scheme = scheme.searched() if search else scheme
    assert scheme.scale_scheme is not None
    boxes, axes, unit = group[:, None, None, :], (1, 3), unit[:, None, None, None]
    weights, levels = corner.weights, searched_levels(scheme)
    if levels is None:
        low, high = _bounds(group, corner, weights, scheme)
        plain = ScaleLevels(scheme.scale_scheme.format)
        found: Tensor = plain.format.decode(plain.nearest(group_scales(low, high, scheme), unit)) * unit
        return found.reshape(-1)
    wanted = group_scales(*AbsMax()(boxes, axes), scheme)
    best: Tensor = levels(boxes, axes, scheme.grid, weights, wanted, unit)[0]
    return best.reshape(-1)


def groups_of(width: int, scheme: Scheme) -> list[Span]:
    """Return the groups of columns that share a scale."""
    return _runs(width, scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else width)


def spans_of(width: int, scheme: Scheme) -> list[Span]:
    """Return the columns whose scales are chosen together: those of a group, or of several."""
    return groups_of(width, scheme) if scheme.span is None else _runs(width, scheme.span)


def _runs(width: int, size: int) -> list[Span]:
    return [(start, min(start + size, width)) for start in range(0, width, size)]


def fixed(weight: Tensor, importance: Tensor, scheme: Scheme, *, search: bool, moment: Tensor | None = None) -> QTensor:
    """Return `weight` (out, in) rounded to nearest under scales chosen before the first column.

    `importance` (in,) or (out, in) weights the errors of the columns as they come; see `importances`. `moment` (in, in)
    is for ranges that look at the output.
    """
    scheme, weights = scheme.searched() if search else scheme, (importance / importance.mean(-1, keepdim=True)).float()
    return quantize(weight, scheme, weights, moment=moment)


def importances(hessian: Hessian) -> Tensor:
    """Return what rounding a column costs, float64 (in,), the columns as they come."""
    found = torch.empty_like(hessian.pivots, dtype=torch.float64)
    found[hessian.order] = hessian.pivots.double()
    return found


def chosen(group: Tensor, corner: Corner, scheme: Scheme, *, search: bool) -> tuple[Tensor, Tensor]:
    """Return scale, rounded to its type, and zero point (out,) for one group of columns (out, k)."""
    weights, usual = corner.weights, isinstance(scheme.ranging, AbsMax | MinMax)
    if not (search and usual and isinstance(scheme.format, Int)) or scheme.float_zero:
        ranging = SquaredError(steps=16) if search and usual else scheme.ranging
        scale, zero = scheme.grid.parameters(*_bounds(group, corner, weights, replace(scheme, range_method=ranging)))
        return scale.reshape(-1), torch.zeros_like(scale.reshape(-1)) if zero is None else zero.reshape(-1)
    scale = group.new_ones(len(group))
    zero = torch.zeros_like(scale)
    limits = (float(scheme.format.qmin), float(scheme.format.qmax), float(scheme.format.reach))
    factors = group.new_tensor(_FACTORS)
    if scheme.symmetric:
        columns.run("search_symmetric", group, weights, limits, factors, scale)
    else:
        columns.run("search_asymmetric", group, weights, limits, factors, scale, zero)
    return round_scale(scale, scheme.scale_type), zero


def _bounds(group: Tensor, corner: Corner, weights: Tensor, scheme: Scheme) -> tuple[Tensor, Tensor]:
    """Return the bounds of each row of a group of columns, as boxes."""
    boxes = group[:, None, None, :]
    if isinstance(scheme.ranging, OutputRange):
        return scheme.ranging.for_inputs(boxes, scheme.grid, corner.moment[None])
    return scheme.ranging(boxes, (1, 3), scheme.grid, weights)
