"""Round for the output of the float layer on its own inputs, where those at hand have drifted: W' = W + W D H^-1.

min over Q of E|W x - Q x'|^2 with H = E[x' x'^T], D = E[(x - x') x'^T] is rounding W' under H; up to a constant its
error is tr(E H E^T) - 2 tr(W D E^T), E = Q - W. GPTAQ (arXiv 2504.02692) corrects for the same column by column.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewbit.algorithms.column_loop import as_torch, rounded
from fewbit.errors import NonFiniteError
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme
from fewbit.statistics.input_drift import InputDrift
from fewbit.statistics.second_moment import SecondMoment

if TYPE_CHECKING:
    from fewbit.algorithms.gptq import Gptq

#: What the report says of a layer whose inputs in the float model are not known.
DRIFT_UNKNOWN = "the drift of its inputs could not be measured: it is not corrected"


def rounded_behind_drift(
    weight: Tensor, moment: SecondMoment, seen: InputDrift, scheme: Scheme, options: Gptq
) -> tuple[QTensor, float, tuple[str, ...]]:
    """Return float32 `weight` (out, in) rounded with the correction or without it, as the output comes nearer.

    Besides the damping that was used, and a remark if the correction is left out.
    """
    plain, used = rounded(weight, moment, scheme, options)
    drift, second = (as_torch(own.result()).to(weight.device) for own in (seen, moment))
    if not bool((drift != 0.0).any()):
        return plain, used, ()
    other, _ = rounded(corrected(weight, second, drift, used), moment, scheme, options)
    with_it, without = (output_error(weight, own.dequantize(), second, drift) for own in (other, plain))
    if with_it < without:
        return other, used, ()
    return plain, used, ("correcting for the drift of its inputs measured no better: it is left out",)


def corrected(weight: Tensor, moment: Tensor, drift: Tensor, damping: float) -> Tensor:
    """Return W' (out, in) for the second `moment` of the inputs and their `drift`, both (in, in).

    Raises:
        NonFiniteError: the damped moment cannot be factored.

    """
    damped = moment.to(torch.float32, copy=True)
    damped.diagonal().add_(damping * float(moment.diagonal().double().mean()))
    lower, failed = torch.linalg.cholesky_ex(damped)
    if int(failed):
        raise NonFiniteError(f"the second moment of its inputs cannot be factored with damping {damping:g}; raise it")
    return weight + torch.cholesky_solve((weight @ drift).T, lower).T


def output_error(weight: Tensor, values: Tensor, moment: Tensor, drift: Tensor) -> float:
    """Return the squared error of the output of `values` on drifted inputs, less what no weight can change."""
    off = values - weight
    return float((off * (off @ moment - 2.0 * (weight @ drift))).double().sum())
