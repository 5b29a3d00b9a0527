"""Scale and zero point of inputs that are about to become codes: their own, or those that calibration has fixed.

Extremes are found by compiled passes; any other range method is the reference's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from fewbit.activation import Activation
from fewbit.kernels import rows_compiled as compiled
from fewbit.numerics.namespace import to_numpy
from fewbit.qtensor import quantize
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.minmax import MinMax
from fewbit.schemes.granularity import PerToken


def of_extremes(activation: Activation) -> bool:
    """Whether the range is that of the extremes of the inputs at hand."""
    return activation.scale is None and isinstance(activation.scheme.ranging, (AbsMax, MinMax))


def scale_and_zero(inputs: Tensor, lines: Any, activation: Activation, threads: int) -> tuple[Any, Any]:
    """Return float32 scale and zero point, (1,) or, of tokens, one for each index of the first axis of `inputs`.

    `lines` (count, length) are the same numbers in any order that keeps those of a token together. NaN comes through.
    """
    scheme = activation.scheme
    by_token = isinstance(scheme.granularity, PerToken)
    tokens = len(inputs) if by_token else 1
    scale, zero = np.empty(tokens, np.float32), np.zeros(tokens, np.float32)
    if of_extremes(activation):
        low, high = np.empty(len(lines), np.float32), np.empty(len(lines), np.float32)
        compiled.shared_out(compiled.extremes, threads, [lines, low, high])
        ends = low.reshape(tokens, -1).min(axis=1), high.reshape(tokens, -1).max(axis=1)
        own = compiled.CodeRange.of(scheme.grid.integer, symmetric=scheme.symmetric)
        compiled.parameters(*ends, scale, zero, own.numbers, own.symmetric)
        return scale, zero
    if activation.scale is None:
        found = quantize(inputs.reshape(tokens, -1) if by_token else inputs, scheme)
        scale[:] = to_numpy(found.scale_values()).reshape(-1)
        zero[:] = 0.0 if found.zero_point is None else to_numpy(found.zero_point).reshape(-1)
    else:  # those of a tensor
        scale[0] = float(activation.scale)
        zero[0] = 0.0 if activation.zero_point is None else float(activation.zero_point)
    return scale, zero
