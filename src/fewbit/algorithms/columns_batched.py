"""GPTQ's inner loops on any torch device: one column at a time, all rows at once. Contract: that of columns_compiled.

What the CPU does row by row in compiled code runs here as operations on (out,) and (out, panel) tensors. Axes before
those of the last two loops are for matrices side by side: (groups, out, span) under (groups, 1, span, span).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Grid = tuple[float, float, Tensor]
#: Scale and zero point (out, n), and which of the n each column has.
Scales = tuple[Tensor, Tensor, Tensor]

#: Columns of a descent that see each other's moves at once; the columns beside them see all moves in one product.
_PANEL = 128
#: Numbers that trials of scales are compared on at once.
_AT_ONCE = 1 << 27


def _unit(value: Tensor, zero: Tensor, grid: Grid) -> Tensor:
    """Return the nearest units to `value`, which is in units of the scale."""
    low, high, levels = grid
    if levels.shape[0] == 0:
        return (value + zero).round().clamp(low, high) - zero
    if levels.shape[0] == 1:
        last = torch.searchsorted(levels[0], value.contiguous(), right=True).clamp(1, levels.shape[1] - 1)
        below, above = levels[0, last - 1], levels[0, last]
    else:
        found = torch.searchsorted(levels, value[:, None].contiguous(), right=True).clamp(1, levels.shape[1] - 1)
        below, above = (levels.gather(1, place)[:, 0] for place in (found - 1, found))
    return torch.where(value - below <= above - value, below, above)


def _units(values: Tensor, scale: Tensor, low: Any, high: Any) -> Tensor:
    """Return the units (..., out, group) of values (out, group) under scales (..., out)."""
    rounded = (values / scale[..., None]).round()
    return torch.minimum(torch.maximum(rounded, torch.as_tensor(low)), torch.as_tensor(high))


def _error(values: Tensor, weights: Tensor, scale: Tensor, low: Any, high: Any) -> Tensor:
    difference = values - _units(values, scale, low, high) * scale[..., None]
    return (weights * difference.square()).sum(-1)


def _settle(values: Tensor, weights: Tensor, best: tuple[Tensor, Tensor], low: Any, high: Any) -> Tensor:
    """Return the scale after alternating between units and scale, kept where that helps."""
    error, scale = best
    for _ in range(3):
        units = _units(values, scale, low, high)
        product, square = (weights * units * values).sum(1), (weights * units.square()).sum(1)
        trial = torch.where((product > 0) & (square > 0), product / square, scale)
        found = _error(values, weights, trial, low, high)
        scale, error = torch.where(found < error, trial, scale), torch.minimum(found, error)
    return scale


def search_symmetric(
    weight: Tensor, weights: Tensor, limits: tuple[float, float, float], factors: Tensor, scale: Tensor
) -> None:
    """Set `scale` (out,) to that of least weighted squared error for each row of `weight` (out, group).

    Tried are `factors` of the scale of the extremes, evenly spaced, and midway to those on either side of the best.
    """
    low, high, reach = limits
    amax = weight.abs().amax(1)
    plain = torch.where(amax > 1e-37, amax / reach, torch.ones_like(amax))
    best = _best(weight, weights, factors[:, None] * plain, low, high)
    best = _nearby(weight, weights, best, _between(factors) * plain, low, high)
    scale.copy_(torch.where(amax > 1e-37, _settle(weight, weights, best, low, high), torch.ones_like(amax)))


def search_asymmetric(
    weight: Tensor,
    weights: Tensor,
    limits: tuple[float, float, float],
    factors: Tensor,
    scale: Tensor,
    zero: Tensor,
) -> None:
    """Set `scale` and `zero` (out,) for each row of `weight` (out, group): zero points near that of the extremes."""
    first, last, _ = limits
    steps = last - first
    least, most = weight.amin(1).clamp(max=0.0), weight.amax(1).clamp(min=0.0)
    there = most - least > 1e-37
    plain = torch.where(there, (most - least) / steps, torch.ones_like(most))
    centre = (-least / plain).round()
    error, chosen, place, largest = torch.full_like(plain, float("inf")), plain, centre, plain
    for shift in range(-2, 3):
        below = (centre + shift).clamp(0, steps)
        none = torch.zeros_like(plain)
        # The least scale that clips nothing with this zero point.
        whole = torch.maximum(
            torch.where(below > 0, -least / below.clamp(min=1), none),
            torch.where(below < steps, most / (steps - below).clamp(min=1), none),
        ).minimum(plain * 2)
        low, high = -below[:, None], (steps - below)[:, None]
        usable = whole > 0  # not so: one bit, and all values on one side
        whole = torch.where(usable, whole, plain)
        found, trial = _best(weight, weights, factors[:, None] * whole, low, high)
        better = usable & (found < error)
        error = torch.where(better, found, error)
        chosen, place = torch.where(better, trial, chosen), torch.where(better, below, place)
        largest = torch.where(better, whole, largest)
    low, high = -place[:, None], (steps - place)[:, None]
    near = _nearby(weight, weights, (error, chosen), _between(factors) * largest, low, high)
    settled = _settle(weight, weights, near, low, high)
    scale.copy_(torch.where(there, settled, torch.ones_like(settled)))
    zero.copy_(torch.where(there, first + place, torch.full_like(place, first)))


def _best(values: Tensor, weights: Tensor, trials: Tensor, low: Any, high: Any) -> tuple[Tensor, Tensor]:
    """Return the least error (out,) of `trials` (n, out), and the first trial that has it."""
    together = max(1, _AT_ONCE // max(1, values.numel()))
    errors = torch.cat([_error(values, weights, some, low, high) for some in torch.split(trials, together)])
    best = errors.argmin(0, keepdim=True)
    return errors.gather(0, best)[0], trials.gather(0, best)[0]


def _nearby(
    values: Tensor, weights: Tensor, best: tuple[Tensor, Tensor], step: Tensor, low: Any, high: Any
) -> tuple[Tensor, Tensor]:
    """Return error and scale of the best of `best` and the scales a `step` to either side of it."""
    error, scale = best
    for trial in (best[1] - step, best[1] + step):
        found = _error(values, weights, trial, low, high)
        scale, error = torch.where(found < error, trial, scale), torch.minimum(found, error)
    return error, scale


def _between(factors: Tensor) -> Tensor:
    return (factors[0] - factors[1]) / 2


def round_columns(
    weight: Tensor, targets: Tensor, root: Tensor, scales: Scales, grid: Grid, units: Tensor, start: int
) -> None:
    """Round columns of `weight` (..., out, in) from `start` on one by one, each after the errors of those before it."""
    scale, zero = (part[..., scales[2]] for part in scales[:2])
    stop = start + scale.shape[-1]
    for place, j in enumerate(range(start, stop)):
        value, own = targets[..., j], scale[..., place]
        units[..., j] = unit = _unit(value / own, zero[..., place], grid)
        value -= unit * own
        weight[..., j] -= unit * own
        targets[..., j + 1 : stop] += weight[..., j, None] * root[..., j, j + 1 : stop]


def descend(units: Tensor, gradient: Tensor, moment: Tensor, scales: Scales, grid: Grid, sweeps: int) -> None:
    """Move each code to the best value for the others as they are, `sweeps` times over all columns."""
    scale, zero = (part[..., scales[2]] for part in scales[:2])
    width = units.shape[-1]
    matrix = moment if moment.dim() == gradient.dim() else moment.squeeze(-3)
    for _ in range(sweeps):
        for first in range(0, width, _PANEL):
            panel = slice(first, min(first + _PANEL, width))
            near, moves = gradient[..., panel].clone(), torch.empty_like(gradient[..., panel])
            for j in range(panel.start, panel.stop):
                own, old, place = scale[..., j], units[..., j].clone(), j - first
                unit = _unit(old + near[..., place] / (moment[..., j, j] * own), zero[..., j], grid)
                units[..., j], moves[..., place] = unit, (unit - old) * own
                near -= moves[..., place, None] * moment[..., j, panel]
            gradient -= moves @ matrix[..., panel, :]
