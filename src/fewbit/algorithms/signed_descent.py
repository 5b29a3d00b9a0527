"""Train a trial weight by the sign of the gradient of tr((W' - W) H (W' - W)^T), with coordinate descent at each halt.

Of every row, or of all that share a scale, the best state is kept, from which training goes on. Sources: SignRound,
arXiv 2309.05516, for the steps; QuantEase, 2309.01885, for the descent: signs alone find next to nothing behind GPTQ.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewbit.algorithms import columns
from fewbit.algorithms.column_scales import ColumnScales
from fewbit.algorithms.trial_weight import TrialWeight
from fewbit.qtensor import QTensor

if TYPE_CHECKING:
    from fewbit.algorithms.autoround import AutoRound

#: What is added to the diagonal of the second moment, as a share of its mean, for the gradient: as GPTQ does.
_DAMPING = 0.01
#: By what share an error has to be less, so that sums in float32 do not decide.
_LEAST = 1e-5
#: How often training begins anew from the best, and sweeps of coordinate descent each time.
_ROUNDS, _SWEEPS = 10, 4


@torch.no_grad()
def descended(weight: Tensor, start: QTensor, moment: Tensor, options: AutoRound) -> QTensor:
    """Return `weight` (out, in) with codes and ranges trained from `start` for inputs of this second moment.

    `moment` is (in, in), or (groups, in, in) where groups of rows have inputs of their own.
    """
    values, moments = weight.to(torch.float32), moment.to(torch.float32).reshape(-1, *moment.shape[-2:])
    damped = moments.clone()
    damped.diagonal(dim1=1, dim2=2).add_(_DAMPING * moments.diagonal(dim1=1, dim2=2).mean(1, keepdim=True))
    best = _Best(start, values, moments)
    each = max(1, options.steps // _ROUNDS)
    trial = TrialWeight(values, start, ranges=options.ranges > 0)
    for step in range(options.steps):
        rate = 2.0 * options.reach / each * (1.0 - step % each / each)
        slope = (trial.value() - values).reshape(len(moments), -1, values.shape[1]) @ damped
        trial.move(slope.reshape(values.shape), rate, rate * options.ranges)
        if (step + 1) % each == 0:
            found = trial.qtensor()
            best.offer(found)
            if len(damped) == 1:
                best.offer(_swept(values, found, damped[0]))
            trial = TrialWeight(values, best.qtensor, ranges=options.ranges > 0)
    return best.qtensor


def _swept(weight: Tensor, given: QTensor, moment: Tensor) -> QTensor:
    """Return `given` after coordinate descent on its codes, as GPTQ ends."""
    scales = ColumnScales.of(given)
    zeros, wide = scales.by_column(scales.zero), scales.by_column(scales.scale)
    form = given.scheme.grid.integer
    units = given.scheme.format.decode(given.codes) - zeros
    gradient = torch.addcmul(weight, units, wide, value=-1) @ moment
    columns.run("descend", units, gradient, moment, scales.at(slice(None)), columns.grid_of(form, weight), _SWEEPS)
    return replace(given, codes=form.to_codes((units + zeros).round()))


class _Best:
    """The best state so far of every part that has scales of its own."""

    def __init__(self, start: QTensor, weight: Tensor, moments: Tensor) -> None:
        self.qtensor, self._weight, self._moments = start, weight, moments
        own = int(start.scale_values().shape[0])
        self._parts = own if len(weight) % own == 0 else 1
        self._least = self._errors(start)

    def offer(self, found: QTensor) -> None:
        """Keep the parts that are better than before."""
        errors = self._errors(found)
        better = errors < self._least * (1.0 - _LEAST)
        if bool(better.any()):
            self._least = torch.where(better, errors, self._least)
            self.qtensor = _mixed(better, found, self.qtensor)

    def _errors(self, found: QTensor) -> Tensor:
        """Return tr((W' - W) H (W' - W)^T) of each part."""
        error = (found.dequantize() - self._weight).reshape(len(self._moments), -1, self._weight.shape[1])
        by_row: Tensor = (error * (error @ self._moments)).sum(2).double()
        return by_row.reshape(self._parts, -1).sum(1)


def _mixed(better: Tensor, new: QTensor, old: QTensor) -> QTensor:
    def chosen(one: Tensor, other: Tensor) -> Tensor:
        rows = better.repeat_interleave(len(one) // len(better)) if len(one) % len(better) == 0 else better
        return torch.where(rows[:, None], one, other)

    zero = None if new.zero_point is None or old.zero_point is None else chosen(new.zero_point, old.zero_point)
    codes, scale = chosen(new.codes, old.codes), chosen(new.scale_values(), old.scale_values())
    return replace(old, codes=codes, scale=scale, zero_point=zero)
