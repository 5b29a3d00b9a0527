"""GPTQ of a grouped convolution: rows (out, n) in groups, each with inputs, and so a second moment, of its own.

All groups are rounded side by side, column by column: (groups, out / groups, n) under (groups, n, n). Scales are
chosen before the first column, as for static groups. Source: GPTQ, arXiv 2210.17323; see `column_loop.py`.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewbit.algorithms import column_scales, columns, columns_batched
from fewbit.algorithms.column_loop import assembled, order_of
from fewbit.algorithms.column_scales import ColumnScales, plain_scales, spans_of
from fewbit.algorithms.hessian import factor_each
from fewbit.formats.scale_type import round_scale
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme

if TYPE_CHECKING:
    from fewbit.algorithms.gptq import Gptq


def rounded_groups(weight: Tensor, moment: Tensor, scheme: Scheme, options: Gptq) -> tuple[QTensor, float]:
    """Return `weight` (out, n) rounded under the second moments (groups, n, n), and the most damping that was used."""
    groups, width = moment.shape[:2]
    order = _orders(moment, order_of(options, scheme))
    hessian = factor_each(moment, order, options.least_damping(moment))
    importance = torch.empty_like(order, dtype=torch.float32)
    importance.scatter_(1, order, hessian.pivots)
    spread = importance.repeat_interleave(len(weight) // groups, 0)
    stored = column_scales.fixed(weight, spread, scheme, search=options.search)
    scales = ColumnScales.of(stored)

    def grouped(part: Tensor) -> Tensor:
        return part.reshape(groups, -1, width)

    scale, zero, grid = grouped(scales.scale), grouped(scales.zero), columns.grid_of(scheme.format, weight)
    columns_in_order = order[:, None, :].expand(scale.shape)

    def ordered(part: Tensor) -> Tensor:
        return part.gather(2, columns_in_order)

    errors, every = ordered(grouped(weight)), torch.arange(width, device=weight.device)
    found, in_order = torch.empty_like(errors), (ordered(scale), ordered(zero), every)
    columns_batched.round_columns(errors, errors.clone(), hessian.root[:, None], in_order, grid, found, 0)
    units = torch.empty_like(found).scatter_(2, columns_in_order, found)
    gradient = torch.matmul(grouped(weight) - units * scale, hessian.damped)
    own = (scale, zero, every)
    columns_batched.descend(units, gradient, hessian.damped[:, None], own, grid, options.sweeps)
    if options.fit and plain_scales(scheme) and len(spans_of(width, scheme)) == 1:
        scales = replace(scales, scale=_fitted(units, gradient, hessian.damped, scale, scheme).reshape(weight.shape))
    return assembled(units.reshape(weight.shape), scales, stored, scheme), hessian.damping


def _orders(moment: Tensor, order: str) -> Tensor:
    """Return the columns of each group, int64 (groups, n), in the order of rounding."""
    diagonal = moment.diagonal(dim1=1, dim2=2)
    if order == "none":
        return torch.arange(moment.shape[1], device=moment.device).expand(moment.shape[:2])
    return diagonal.argsort(dim=1, descending=True, stable=True)


def _fitted(units: Tensor, gradient: Tensor, moment: Tensor, scale: Tensor, scheme: Scheme) -> Tensor:
    """Return the one scale of each row, spread over its columns, that leaves the least error for these units."""
    product = (gradient * units).sum(2, keepdim=True).double()
    square = (torch.matmul(units, moment) * units).sum(2, keepdim=True).double()
    moved = scale[..., :1].double() + product / square.clamp(min=1e-300)
    usable = (square > 0) & (moved > 0)
    fitted = torch.where(usable, moved.float(), scale[..., :1])
    rounded: Tensor = round_scale(fitted, scheme.scale_type)
    return rounded.expand(scale.shape)
