"""Inputs as rows of codes, by operations of torch on whatever device they lie."""

from __future__ import annotations

from torch import Tensor

from fewbit.activation import Activation
from fewbit.numerics.namespace import to_float32
from fewbit.qtensor import quantize


def row_codes(inputs: Tensor, activation: Activation) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return codes (rows, in), and float32 scale and zero point (rows, 1), or (1, 1) of a tensor; NaN has any code.

    The scale of a dynamic range is NaN where an input is.
    """
    scheme = activation.scheme
    if activation.scale is None:
        found = quantize(inputs, scheme)
        codes, scale, zero = found.codes, found.scale_values(), found.zero_point
    else:
        codes = scheme.grid.codes(to_float32(inputs), activation.scale, activation.zero_point)
        scale, zero = activation.scale, activation.zero_point
    zero = None if zero is None else zero.reshape(-1, 1).float()
    return codes.reshape(-1, inputs.shape[-1]), scale.reshape(-1, 1), zero
