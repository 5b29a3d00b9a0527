"""Products of weights alone with a few rows of bfloat16, as decoding has them: what torch's packed operators share.

y = sum_k x_k (code_k s): codes are read instead of a weight of two to four times their size. For many rows the product
itself counts, and dequantizing the weight once is faster.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewbit.activation import Activation
from fewbit.formats.integer import Int
from fewbit.kernels import Request
from fewbit.kernels.dequantize import Dequantize, wants_gradient
from fewbit.qtensor import QTensor
from fewbit.schemes.granularity import PerGroup
from fewbit.schemes.scheme import Scheme

#: Rows up to which they are faster than dequantizing.
_FEW = 64
#: Sizes of groups that the operators for int4 take.
_GROUPS = (32, 64, 128, 256)


@dataclass(frozen=True, slots=True)
class Prepared:
    """The weight for the operator, and as it is stored for many rows."""

    arguments: tuple[Any, ...]
    weight: QTensor


def product(
    operator: Any, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None
) -> Tensor:
    """Return `inputs @ weight.T + bias`; sums of a few rows are float32, rounded before the bias is added."""
    rows = inputs.reshape(-1, inputs.shape[-1])
    if not 0 < len(rows) <= _FEW or wants_gradient(inputs, bias):
        return Dequantize().apply(inputs, prepared.weight, bias, activation)
    found: Tensor = operator(rows.contiguous(), *prepared.arguments).reshape(*inputs.shape[:-1], -1)
    return found if bias is None else found + bias


def scale_refusal(scheme: Scheme) -> str | None:
    """Return what stands against the scales of a weight."""
    if scheme.scale_type != "bfloat16":
        return f"its scales are bfloat16, not {scheme.scale_type or 'float32'}: quantize with dtype='bfloat16'"
    return None


def int4_refusal(request: Request, rows: int, columns: int) -> str | None:
    """Return what stands against an operator for int4 by group, whose weights are multiples of `rows` x `columns`."""
    scheme, (height, width) = request.weight, request.shape
    size = scheme.granularity.size if isinstance(scheme.granularity, PerGroup) else 0
    if scheme.format != Int(4) or not scheme.symmetric or size not in _GROUPS:
        return f"its weights are symmetric int4 in groups of {', '.join(map(str, _GROUPS))}, not {scheme}"
    if height % rows or width % columns or width % size:
        return (
            f"its weights have whole groups and multiples of {rows} rows and {columns} columns, not {height} x {width}"
        )
    return scale_refusal(scheme)


def group_numbers(qtensor: QTensor) -> tuple[int, Tensor]:
    """Return the size of a group, and bfloat16 scales beside zeros (groups, out, 2): weight = (code - 8) scale + 0."""
    assert isinstance(qtensor.scheme.granularity, PerGroup)  # `int4_refusal` says so
    scale = qtensor.scale_values().T.to(torch.bfloat16)
    return qtensor.scheme.granularity.size, torch.stack([scale, torch.zeros_like(scale)], dim=-1).contiguous()
