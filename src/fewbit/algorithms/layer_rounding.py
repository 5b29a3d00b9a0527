"""Learn the roundings of a layer for its own output: tr((W' - W) H (W' - W)^T), whose gradient in W' is 2 (W' - W) H.

The second moment H of the inputs takes the place of samples, so that a step sees all of them. Of every row the better
of nearest and learned codes is kept. Sources: AdaRound, arXiv 2004.10568; H: GPTQ, 2210.17323.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fewbit.algorithms.annealing import Annealing
from fewbit.algorithms.neighbours import Neighbours
from fewbit.algorithms.soft_rounding import SoftRounding
from fewbit.qtensor import QTensor

#: What is added to the diagonal of the second moment, as a share of its mean, for the gradient: as GPTQ does.
_DAMPING = 0.01
#: By what share an error has to be less, so that sums in float32 do not decide.
_LEAST = 1e-5
#: From how many inputs on products in bfloat16 save time.
_WIDE = 64


@torch.no_grad()
def rounded_for(
    weight: Tensor,
    start: QTensor,
    moment: Tensor,
    annealing: Annealing,
    *,
    halved: bool,
    drift: Tensor | None = None,
) -> QTensor:
    """Return `weight` (out, in) with roundings learned under the scales of `start`, which is rounded to nearest.

    `moment` is (in, in), or (groups, in, in) where groups of rows have inputs of their own. `halved`: products are
    taken in bfloat16; what is compared in the end is not. `drift` D (in, in): how far inputs have drifted from those of
    the float model.
    """
    if not annealing.steps:
        return start
    values, moments = weight.to(torch.float32), moment.to(torch.float32).reshape(-1, *moment.shape[-2:])
    damped = moments.clone()
    damped.diagonal(dim1=1, dim2=2).add_(_DAMPING * moments.diagonal(dim1=1, dim2=2).mean(1, keepdim=True))
    left = start.dequantize() - values
    nearest = (left * _product(left, damped)).sum(1, keepdim=True)
    # In units of what rounding to nearest leaves; a row that it leaves nothing of stays.
    unit = torch.where(nearest > 0, 2.0 * values.shape[1] / nearest, 0.0)
    taken = damped.to(torch.bfloat16) if halved and values.shape[1] >= _WIDE else damped
    # With E = W' - W the error is tr(E H E^T) - 2 tr(W D E^T) but for a constant, and half of its slope E H - W D.
    drifted = torch.zeros_like(values) if drift is None else values @ drift.to(torch.float32)
    soft = SoftRounding(Neighbours.of(values, start), annealing)
    for _ in range(annealing.steps):
        soft.move(_product(soft.value().sub_(values), taken).sub_(drifted).mul_(unit))
    learned = soft.qtensor()
    errors = [_errors(own, values, moments, drifted) for own in (learned, start)]
    better = errors[0] < errors[1] - _LEAST * errors[1].abs()
    return replace(start, codes=torch.where(better[:, None], learned.codes, start.codes))


def _product(error: Tensor, moments: Tensor) -> Tensor:
    """Return E H (out, in), the rows of each group with their own."""
    grouped = error.to(moments.dtype).reshape(len(moments), -1, error.shape[1])
    return torch.matmul(grouped, moments).to(torch.float32).reshape(error.shape)


def _errors(found: QTensor, weight: Tensor, moments: Tensor, drifted: Tensor) -> Tensor:
    error = found.dequantize() - weight
    by_row: Tensor = (error * (_product(error, moments) - 2.0 * drifted)).sum(1).double()
    return by_row
