"""The column loop around its compiled parts: panels, groups, scales from the updated weights, descent, fit.

A panel of columns is rounded group by group; its errors reach the columns after it in one product at its end:
W[:, after] -= E U[panel, after]. # weight: (out, in)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fewbit.algorithms import columns_batched, columns_compiled
from fewbit.algorithms.column_order import ORDERS, Span
from fewbit.algorithms.hessian import Hessian, factor
from fewbit.algorithms.scale_fit import fitted_scales
from fewbit.algorithms.solution import Solution
from fewbit.formats.integer import Int
from fewbit.formats.scale_type import round_scale
from fewbit.numerics.groups import beside_boxes, merge, split
from fewbit.numerics.namespace import Array, array_namespace, is_torch, to_numpy
from fewbit.qtensor import QTensor, quantize, scale_shape
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.minmax import MinMax
from fewbit.ranges.squared_error import SquaredError
from fewbit.schemes.granularity import PerChannel, PerGroup
from fewbit.schemes.scheme import Scheme

if TYPE_CHECKING:
    from fewbit.algorithms.gptq import Gptq

#: Columns whose errors reach the rest at once.
_PANEL = 128
#: Shares of the scale that clips nothing that a search tries.
_FACTORS = tuple(1.07 - 0.03 * step for step in range(20))


def rounded(weight: Array, moment: Array, scheme: Scheme, options: Gptq) -> Solution:
    """Return `weight` (out, in), an array of any framework, rounded under its input's second `moment` (in, in)."""
    values = weight.detach() if is_torch(weight) else torch.from_numpy(to_numpy(weight).copy())
    loop = _ColumnLoop(values.to(torch.float32), torch.as_tensor(to_numpy(moment), device=values.device)
                       if not is_torch(moment) else moment.to(values.device), scheme, options)  # fmt: skip
    qtensor, damping = loop.run()
    if not is_torch(weight):
        xp = array_namespace(weight)
        qtensor = qtensor.map(lambda array: xp.asarray(array.numpy()))
    asked = options.damping
    remarks = () if damping == asked else (f"damping raised from {asked:g} to {damping:g}: its inputs are dependent",)
    return Solution(qtensor, damping, remarks)


class _ColumnLoop:
    """One weight while it is rounded; everything that is indexed by column is in the order of rounding."""

    def __init__(self, weight: Tensor, moment: Tensor, scheme: Scheme, options: Gptq) -> None:
        self.weight, self.moment, self.scheme, self.options = weight, moment, scheme, options
        order = options.order
        if order == "auto":
            order = "group-aware" if isinstance(scheme.format, Int) and scheme.format.bits <= 4 else "none"
        self.spans = _spans(weight.shape[1], scheme)
        self.order = ORDERS[order](moment.diagonal(), self.spans)
        #: Scales are chosen when a group is reached, from weights that hold the errors made before.
        self.dynamic = _own_scales(scheme) and order != "activation"
        self.kernels: Any = columns_compiled if weight.device.type == "cpu" else columns_batched

    def run(self) -> tuple[QTensor, float]:
        """Return the rounded weight and the damping that was used."""
        hessian = factor(self.moment, self.order, self.options.damping)
        self.working = self.weight[:, self.order].contiguous()
        self.scale = torch.ones_like(self.working)
        self.zero = torch.zeros_like(self.working)
        self.units = torch.empty_like(self.working)
        stored = None if self.dynamic else self._fixed_scales(hessian)
        for panel in self._panels():
            self._round_panel(panel, hessian)
        back = self.order.argsort()
        units, scale, zero = (part[:, back].contiguous() for part in (self.units, self.scale, self.zero))
        damped = hessian.moment[back][:, back].contiguous()
        scale = self._improve(units, scale, zero, damped)
        return self._qtensor(units, scale, zero, stored), hessian.damping

    def _panels(self) -> list[list[Span]]:
        """Return runs of whole groups, or parts of one, of about `_PANEL` columns, in the order of rounding."""
        place, pieces = 0, []
        sizes = [stop - start for start, stop in self._ordered_spans()]
        for size in sizes if self.dynamic else [len(self.order)]:
            step = size if size <= _PANEL else _PANEL
            pieces += [(start, min(start + step, place + size)) for start in range(place, place + size, step)]
            place += size
        panels: list[list[Span]] = []
        for piece in pieces:
            if panels and piece[1] - panels[-1][0][0] <= _PANEL:
                panels[-1].append(piece)
            else:
                panels.append([piece])
        return panels

    def _ordered_spans(self) -> list[Span]:
        """Return the groups in the order in which their first columns come."""
        place = self.order.argsort()
        return sorted(self.spans, key=lambda span: int(place[span[0] : span[1]].min()))

    def _round_panel(self, panel: list[Span], hessian: Hessian) -> None:
        first, last = panel[0][0], panel[-1][1]
        errors = torch.empty_like(self.working[:, first:last])
        for start, stop in panel:
            if self.dynamic:
                self._choose_scale(start, hessian)
            error = torch.empty_like(self.working[:, start:stop])
            columns = [part[:, start:stop].contiguous() for part in (self.working, self.scale, self.zero)]
            units = torch.empty_like(columns[0])
            upper = hessian.upper[start:stop, start:stop].contiguous()
            self._call("round_columns", columns[0], upper, *columns[1:], self._grid(), units, error)
            self.units[:, start:stop], errors[:, start - first : stop - first] = units, error
            self.working[:, stop:last] -= error @ hessian.upper[start:stop, stop:last]
        self.working[:, last:] -= errors @ hessian.upper[first:last, last:]

    def _choose_scale(self, start: int, hessian: Hessian) -> None:
        """Choose scale and zero point of the group that begins at column `start`; nothing inside a group."""
        place = 0
        for span in self._ordered_spans():
            size = span[1] - span[0]
            if place == start:
                group = slice(place, place + size)
                importance = hessian.upper.diagonal()[group].double().pow(-2)
                scale, zero = self._searched(self.working[:, group].contiguous(), importance / importance.mean())
                self.scale[:, group], self.zero[:, group] = scale[:, None], zero[:, None]
            place += size

    def _searched(self, group: Tensor, importance: Tensor) -> tuple[Tensor, Tensor]:
        """Return scale, rounded to its type, and zero point (out,) for the columns of one group."""
        scheme = self.scheme
        weights = importance.float()
        usual = isinstance(scheme.ranging, AbsMax | MinMax)
        if not (self.options.search and usual and isinstance(scheme.format, Int)) or scheme.float_zero:
            ranging = SquaredError(steps=16) if self.options.search and usual else scheme.ranging
            low, high = ranging(group[:, None, None, :], (1, 3), scheme.grid, weights)
            scale, zero = scheme.grid.parameters(low, high)
            return scale.reshape(-1), torch.zeros_like(scale.reshape(-1)) if zero is None else zero.reshape(-1)
        scale, zero = torch.ones(len(group), device=group.device), torch.zeros(len(group), device=group.device)
        limits = (float(scheme.format.qmin), float(scheme.format.qmax), float(scheme.format.reach))
        factors = torch.tensor(_FACTORS, dtype=torch.float32, device=group.device)
        if scheme.symmetric:
            self._call("search_symmetric", group, weights, limits, factors, scale)
        else:
            self._call("search_asymmetric", group, weights, limits, factors, scale, zero)
        return round_scale(scale, scheme.scale_type), zero

    def _fixed_scales(self, hessian: Hessian) -> QTensor:
        """Choose all scales before the first column, from the weights as they came; return them in a QTensor."""
        back = self.order.argsort()
        importance = hessian.upper.diagonal().double().pow(-2)[back]
        scheme = self.scheme
        if self.options.search and isinstance(scheme.ranging, AbsMax | MinMax):
            from dataclasses import replace

            scheme = replace(scheme, range_method=SquaredError())
        stored = quantize(self.weight, scheme, (importance / importance.mean()).float())
        box, shape = scheme.granularity.box(stored.shape), stored.shape
        for target, part in ((self.scale, stored.scale_values()), (self.zero, stored.zero_point)):
            if part is not None:
                spread = split(torch.zeros(shape, device=target.device), box) + beside_boxes(part.float())
                target.copy_(merge(spread, shape)[:, self.order])
        return stored

    def _improve(self, units: Tensor, scale: Tensor, zero: Tensor, moment: Tensor) -> Tensor:
        """Descend from `units`, in place, and return the scales fitted to them, per column."""
        if self.options.sweeps:
            gradient = ((self.weight - units * scale) @ moment).contiguous()
            self._call("descend", units, gradient, moment, scale, zero, self._grid(), self.options.sweeps)
        size = self.spans[0][1] - self.spans[0][0]
        if not (self.options.fit and _own_scales(self.scheme)) or units.shape[1] % size:
            return scale
        starts = [start for start, _ in self.spans]
        fitted = fitted_scales(self.weight, units, moment, size, scale[:, starts])
        improved: Tensor = round_scale(fitted, self.scheme.scale_type).repeat_interleave(size, 1)
        return improved

    def _qtensor(self, units: Tensor, scale: Tensor, zero: Tensor, stored: QTensor | None) -> QTensor:
        """Return codes and parameters in the shapes in which they are stored."""
        scheme, form = self.scheme, self.scheme.format
        codes = form.to_codes((units + zero).round()) if isinstance(form, Int) else form.encode(units)
        if stored is not None and not _own_scales(scheme):
            return QTensor(codes=codes, scale=stored.scale, zero_point=stored.zero_point, scheme=scheme)
        starts = [start for start, _ in self.spans]
        shape = scale_shape(tuple(units.shape), scheme)
        zeros = zero[:, starts].reshape(shape)
        kept = None if scheme.symmetric else zeros if scheme.float_zero else scheme.grid.integer.to_codes(zeros)
        return QTensor(codes=codes, scale=scale[:, starts].reshape(shape), zero_point=kept, scheme=scheme)

    def _grid(self) -> tuple[float, float, Tensor]:
        """Return (lowest code, highest code, levels); levels are empty for integers."""
        form = self.scheme.format
        if isinstance(form, Int):
            return float(form.qmin), float(form.qmax), torch.empty(0, device=self.weight.device)
        levels = torch.tensor(form.levels, dtype=torch.float32, device=self.weight.device)
        return 0.0, float(len(form.levels) - 1), levels

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a kernel; the compiled ones take NumPy views of the same memory, and float32 numbers."""
        kernel = getattr(self.kernels, name)
        if self.kernels is not columns_compiled:
            kernel(*arguments)
            return
        with columns_compiled.threads_for(arguments[0].numel()):
            kernel(*(_as_numpy(argument) for argument in arguments))


def _as_numpy(argument: Any) -> Any:
    import numpy as np

    if isinstance(argument, Tensor):
        return argument.numpy()
    if isinstance(argument, tuple):
        return tuple(_as_numpy(part) for part in argument)
    return np.float32(argument) if isinstance(argument, float) else argument


def _own_scales(scheme: Scheme) -> bool:
    """Whether each row has scales of its own, for groups of columns or for all, kept as plain floats."""
    each_row = scheme.granularity == PerChannel() or isinstance(scheme.granularity, PerGroup)
    return each_row and scheme.scale_scheme is None


def _spans(width: int, scheme: Scheme) -> list[Span]:
    size = scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else width
    return [(start, min(start + size, width)) for start in range(0, width, size)]
