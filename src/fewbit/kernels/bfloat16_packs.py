"""Weights of 8 and 4 bits times a few rows of bfloat16, by the operators that torch brings for decoding on the CPU.

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
from fewbit.schemes.granularity import PerChannel, PerGroup
from fewbit.schemes.scheme import Scheme

#: Rows up to which they are faster than dequantizing; that they are faster than float holds for one to four.
_FEW = 64
_GROUPS = (32, 64, 128, 256)
#: Widths are multiples of this: torch 2.13 goes by 8 numbers on AVX2 and by 16 on AVX512, and has no tail.
_WIDTHS = 32


@dataclass(frozen=True, slots=True)
class Prepared:
    """The weight for the operator, and as it is stored for many rows."""

    arguments: tuple[Any, ...]
    weight: QTensor


@dataclass(frozen=True, slots=True)
class Int8Pack:
    """Eight bits and fewer by channel."""

    name: str = "int8pack"
    rounds: bool = False
    fast: bool = True

    def refusal(self, request: Request) -> str | None:
        """Return what stands against it."""
        scheme = request.weight
        whole = isinstance(scheme.format, Int) and scheme.format.signed and scheme.format.bits <= 8
        known = whole and scheme.symmetric and scheme.granularity == PerChannel()
        other = None if known else f"its weights are symmetric integers of 8 bits by channel, not {scheme}"
        return _refusal(request) or other or _scale_refusal(scheme)

    def prepare(self, qtensor: QTensor) -> Prepared:
        """Return codes and scales as the operator takes them."""
        return Prepared((qtensor.codes, qtensor.scale_values().reshape(-1).to(torch.bfloat16)), qtensor)

    def linear(
        self, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `inputs @ weight.T + bias`; sums are float32, rounded to bfloat16 before the bias is added."""
        # Rows of other widths come out as infinities or end the process: torch reads them past their end.
        few = prepared.weight.shape[1] % _WIDTHS == 0
        return _product(torch.ops.aten._weight_int8pack_mm, inputs, prepared, (bias, activation), few=few)


@dataclass(frozen=True, slots=True)
class Int4Pack:
    """Four bits by group."""

    name: str = "int4pack"
    rounds: bool = False
    fast: bool = True

    def refusal(self, request: Request) -> str | None:
        """Return what stands against it."""
        scheme = request.weight
        grouped = isinstance(scheme.granularity, PerGroup) and scheme.granularity.size in _GROUPS
        known = scheme.format == Int(4) and scheme.symmetric and grouped
        sizes = ", ".join(map(str, _GROUPS))
        other = None if known else f"its weights are symmetric int4 in groups of {sizes}, not {scheme}"
        return _refusal(request) or other or _scale_refusal(scheme)

    def prepare(self, qtensor: QTensor) -> Prepared:
        """Return codes packed for this processor, and scales beside zeros by group."""
        granularity = qtensor.scheme.granularity
        assert isinstance(granularity, PerGroup)  # `refusal` says so
        if qtensor.shape[0] % 16 or qtensor.shape[1] % granularity.size:
            return Prepared((), qtensor)
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(qtensor.codes.to(torch.int32) + 8, 1)
        scale = qtensor.scale_values().T.to(torch.bfloat16)
        numbers = torch.stack([scale, torch.zeros_like(scale)], dim=-1).contiguous()
        return Prepared((packed, granularity.size, numbers), qtensor)

    def linear(
        self, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `inputs @ weight.T + bias`; sums are float32, rounded to bfloat16 before the bias is added."""
        few = bool(prepared.arguments)
        return _product(torch.ops.aten._weight_int4pack_mm_for_cpu, inputs, prepared, (bias, activation), few=few)


def _product(
    operator: Any, inputs: Tensor, prepared: Prepared, rest: tuple[Tensor | None, Activation | None], *, few: bool
) -> Tensor:
    rows = inputs.reshape(-1, inputs.shape[-1])
    if not few or not 0 < len(rows) <= _FEW or wants_gradient(inputs, rest[0]):
        return Dequantize().linear(inputs, prepared.weight, *rest)
    product: Tensor = operator(rows.contiguous(), *prepared.arguments).reshape(*inputs.shape[:-1], -1)
    return product if rest[0] is None else product + rest[0]


def _refusal(request: Request) -> str | None:
    if request.input is not None:
        return "its inputs are not rounded"
    if (request.device, request.dtype) != ("cpu", "bfloat16"):
        return f"kernels for weights alone take bfloat16 on the CPU, not {request.dtype} on {request.device}"
    return None


def _scale_refusal(scheme: Scheme) -> str | None:
    if scheme.scale_type != "bfloat16":
        return f"its scales are bfloat16, not {scheme.scale_type or 'float32'}: quantize with dtype='bfloat16'"
    return None
