"""The column loop around its inner loops: panels, groups, scales from the updated weights, descent, fit.

A panel of columns is rounded group by group; its errors reach the columns after it in one product at its end:
T[:, after] += (W - Q)[:, panel] R[panel, after], T being what columns are rounded as. # weight: (out, in)
"""

from __future__ import annotations

from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from fewbit.algorithms import column_scales, columns
from fewbit.algorithms.column_order import ORDERS, Order
from fewbit.algorithms.column_scales import ColumnScales, at_levels, groups_of, own_scales, plain_scales, spans_of
from fewbit.algorithms.column_spans import chosen_span, joined, scale_and_zero, with_fitted_floats
from fewbit.algorithms.hessian import Corner, Hessian, factor
from fewbit.algorithms.level_fit import fitted_levels
from fewbit.algorithms.scale_fit import fitted_scales
from fewbit.formats.integer import Int
from fewbit.formats.scale_type import round_scale
from fewbit.numerics.namespace import Array, is_torch, to_numpy
from fewbit.qtensor import QTensor, scale_shape
from fewbit.schemes.scheme import Scheme
from fewbit.statistics.second_moment import SecondMoment

if TYPE_CHECKING:
    from fewbit.algorithms.gptq import Gptq

#: Columns whose errors reach the rest at once.
_PANEL = 128
#: How often learned levels are descended to; between, they are fitted.
_TURNS = 3


def rounded(weight: Tensor, moment: SecondMoment, scheme: Scheme, options: Gptq) -> tuple[QTensor, float]:
    """Return float32 `weight` (out, in) rounded under its input's second moment, and the damping that was used."""
    loop = _ColumnLoop(weight, _hessian(moment, weight.device, scheme, options), scheme, options)
    return loop.run(), loop.hessian.damping


def order_of(options: Gptq, scheme: Scheme) -> Order:
    """Return the order of the columns, `auto` resolved."""
    if options.order != "auto":
        return options.order
    return "group-aware" if scheme.format.bits <= 4 else "none"


def as_torch(array: Array) -> Tensor:
    """Return an array of any framework as a tensor."""
    tensor: Tensor = array.detach() if is_torch(array) else torch.from_numpy(to_numpy(array).copy())
    return tensor


def _hessian(moment: SecondMoment, device: torch.device, scheme: Scheme, options: Gptq) -> Hessian:
    """Return the factored second moment; layers that share an input and a scheme share it too."""
    order, spans = order_of(options, scheme), spans_of(moment.width, scheme)
    damping = options.least_damping(moment)

    def make(result: Array) -> Hessian:
        matrix = as_torch(result).to(device)
        return factor(matrix, ORDERS[order](matrix.diagonal(), spans), damping)

    return moment.derive((order, spans[0], damping, device), make)


class _Piece(NamedTuple):
    """Columns, counted in the order of rounding, that are rounded in one go."""

    start: int
    stop: int
    #: Where the group ends whose scales are to be chosen before; 0: they are known.
    chosen_to: int


class _ColumnLoop:
    """One weight while it is rounded."""

    def __init__(self, weight: Tensor, hessian: Hessian, scheme: Scheme, options: Gptq) -> None:
        self.weight, self.hessian, self.scheme, self.options = weight, hessian, scheme, options
        #: Scales are chosen when a group is reached, from weights that hold the errors made before.
        self.dynamic = own_scales(scheme) and options.order != "activation"
        if scheme.scale_scheme is not None and scheme.span is None:
            self.dynamic &= scheme.symmetric
        if scheme.learned:  # levels are shares of the scales that they were learned under
            self.dynamic = False
        #: What scales that are quantized themselves are counted in, (out, groups).
        self.unit: Tensor | None = None
        self.spans, self.groups = spans_of(weight.shape[1], scheme), groups_of(weight.shape[1], scheme)
        #: Spans whose parameters are chosen, by their first column, where a search does so for whole spans.
        self.chosen: dict[int, QTensor] = {}
        self.grid = columns.grid_of(scheme.format, weight)

    def run(self) -> QTensor:
        """Return the rounded weight."""
        stored, scales = None, ColumnScales.open(self.weight, self.groups)
        if not self.dynamic or (self.scheme.scale_scheme is not None and self.scheme.span is None):
            importance = column_scales.importances(self.hessian)
            stored = column_scales.fixed(
                self.weight, importance, self.scheme, search=self.options.search, moment=self.hessian.damped
            )
            self.unit = column_scales.units_of_scales(stored) if self.dynamic else None
            scales = scales if self.dynamic else ColumnScales.of(stored)
            self.grid = columns.grid_of(self.scheme.format, self.weight, stored.codebook)
        units, left = self._rounded(scales)
        if stored is not None and stored.codebook is not None:
            return self._with_levels(units, scales, stored)
        if self.chosen:
            stored = joined([self.chosen[first] for first in sorted(self.chosen)])
        scales = self._improved(units, left, scales)
        found = assembled(units, scales, stored, self.scheme)
        fits = self.options.fit and self.scheme.span is not None
        return with_fitted_floats(self.weight, found, self.hessian.damped) if fits else found

    def _with_levels(self, units: Tensor, scales: ColumnScales, stored: QTensor) -> QTensor:
        """Descend from `units` and fit the levels, in turn, and return codes with both."""
        assert stored.codebook is not None
        tables, moment, wide = stored.codebook, self.hessian.damped, scales.by_column(scales.scale)
        for turn in range(_TURNS if self.options.fit else 1):
            gradient = torch.addcmul(self.weight, units, wide, value=-1) @ moment
            if turn:
                tables, units = fitted_levels((units, tables), gradient, moment, wide, self.scheme.scale_type)
                self.grid = columns.grid_of(self.scheme.format, self.weight, tables)
                gradient = torch.addcmul(self.weight, units, wide, value=-1) @ moment
            if self.options.sweeps:
                columns.run("descend", units, gradient, moment, scales.at(slice(None)), self.grid, self.options.sweeps)
        codes = torch.searchsorted(tables, units.contiguous()).to(torch.uint8)
        return replace(stored, codes=codes, codebook=tables)

    def _rounded(self, scales: ColumnScales) -> tuple[Tensor, Tensor]:
        """Return the units (out, in) that the loop over the columns finds, and what each left in its turn, in order."""
        order, root = self.hessian.order, self.hessian.root
        errors = self.weight.index_select(1, order)  # weights, until they are rounded
        targets, units = errors.clone(), torch.empty_like(errors)
        for panel in self._panels():
            first, last = panel[0].start, panel[-1].stop
            for start, stop, chosen_to in panel:
                if chosen_to:
                    self._choose(scales, errors, targets, slice(start, chosen_to))
                own = scales.at(order[start:stop])
                columns.run("round_columns", errors, targets, root, own, self.grid, units, start)
                targets[:, stop:last].addmm_(errors[:, start:stop], root[start:stop, stop:last])
            targets[:, last:].addmm_(errors[:, first:last], root[first:last, last:])
        return units.index_select(1, order.argsort()), targets

    def _panels(self) -> list[list[_Piece]]:
        """Return runs of whole groups, or parts of one, of about `_PANEL` columns, in the order of rounding."""
        width = self.spans[0][1] - self.spans[0][0]
        index = (self.hessian.order // width).tolist() if self.dynamic else [0] * self.weight.shape[1]
        panels: list[list[_Piece]] = []
        begin = 0
        for _, run in groupby(index):
            end = begin + len(list(run))
            for start in range(begin, end, _PANEL):
                chosen_to = end if self.dynamic and start == begin else 0
                piece = _Piece(start, min(start + _PANEL, end), chosen_to)
                if panels and piece.stop - panels[-1][0].start <= _PANEL:
                    panels[-1].append(piece)
                else:
                    panels.append([piece])
            begin = end
        return panels

    def _choose(self, scales: ColumnScales, weight: Tensor, targets: Tensor, span: slice) -> None:
        """Choose scale and zero point of the group of columns `span`, in the order of rounding as all that is given."""
        corner, which = self.hessian.corner(span), self.hessian.order[span]
        group, search = int(scales.index[which[0]]), self.options.search
        own = weight[:, span].contiguous()
        if span.start:  # weights that hold the errors made before, as if no column of the group were to be rounded
            corner.make_up(own, targets[:, span] - own)
        if self.scheme.span is not None:
            self._choose_span(scales, own, which, corner)
            return
        if self.unit is not None:
            unit = self.unit[:, group]
            scales.scale[:, group] = column_scales.chosen_level(own, corner, self.scheme, unit, search=search)
            return
        scales.scale[:, group], scales.zero[:, group] = column_scales.chosen(own, corner, self.scheme, search=search)

    def _choose_span(self, scales: ColumnScales, own: Tensor, which: Tensor, corner: Corner) -> None:
        """Choose all parameters of the span of the columns `which`, that are `own` (out, span) now."""
        found = chosen_span(own, which, corner.weights if self.options.search else None, self.scheme)
        first = int(which.min())
        self.chosen[first] = found
        scale, zero = scale_and_zero(found)
        group = int(scales.index[first])
        groups = slice(group, group + scale.shape[1])
        scales.scale[:, groups], scales.zero[:, groups] = scale, zero

    def _improved(self, units: Tensor, left: Tensor, scales: ColumnScales) -> ColumnScales:
        """Descend from `units`, in place, and return the scales fitted to them; `left` is overwritten."""
        size = self.spans[0][1] - self.spans[0][0]
        fits = self.options.fit and plain_scales(self.scheme) and units.shape[1] % size == 0
        if not (self.options.sweeps or fits):
            return scales
        moment, gradient = self.hessian.damped, self.hessian.gradient(left)
        if self.options.sweeps:
            columns.run("descend", units, gradient, moment, scales.at(slice(None)), self.grid, self.options.sweeps)
        if not fits:
            return scales
        own = scales.by_span(self.spans)
        fitted = fitted_scales(gradient, units, moment, size, own.scale)
        return replace(own, scale=round_scale(fitted, self.scheme.scale_type))


def assembled(units: Tensor, scales: ColumnScales, stored: QTensor | None, scheme: Scheme) -> QTensor:
    """Return codes and parameters in the shapes in which they are stored; those of `stored` if rows have none."""
    form = scheme.format
    shifted = units if scheme.symmetric else (units + scales.by_column(scales.zero)).round()
    codes = form.to_codes(shifted) if isinstance(form, Int) else form.encode(units)
    if scheme.span is not None:
        assert stored is not None
        return replace(stored, codes=codes)
    own = scales.by_span(groups_of(units.shape[1], scheme))
    if stored is not None and not plain_scales(scheme):
        levelled = own_scales(scheme) and scheme.symmetric
        scale = at_levels(own, stored) if levelled else stored.scale
        return QTensor(codes=codes, scale=scale, zero_point=stored.zero_point, scheme=scheme)
    shape = scale_shape(tuple(units.shape), scheme)
    zeros = own.zero.reshape(shape)
    kept = None if scheme.symmetric else zeros if scheme.float_zero else scheme.grid.integer.to_codes(zeros)
    return QTensor(codes=codes, scale=own.scale.reshape(shape), zero_point=kept, scheme=scheme)
