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
from fewbit.kernels.purpose import Purpose
from fewbit.kernels.window import Window
from fewbit.qtensor import QTensor
from fewbit.schemes.granularity import PerChannel, PerGroup
from fewbit.schemes.scheme import Scheme

#: Rows up to which they are faster than dequantizing.
_FEW = 64
_PURPOSE = Purpose(device="cpu", dtypes=("bfloat16",), rounds=False, rows=4, needs="scales of bfloat16")
_GROUPS = (32, 64, 128, 256)
#: Widths are multiples of this: torch 2.13 goes by 8 numbers on AVX2 and by 16 on AVX512, and has no tail.
_WIDTHS = 32
#: Rows of int4 weights are a multiple of this.
_ROWS = 16


@dataclass(frozen=True, slots=True)
class Prepared:
    """The weight for the operator, and as it is stored for many rows."""

    arguments: tuple[Any, ...]
    weight: QTensor


@dataclass(frozen=True, slots=True)
class Int8Pack:
    """Eight bits and fewer by channel."""

    name: str = "int8pack"
    purpose: Purpose = _PURPOSE

    def missing(self) -> None:
        """Return `None`."""

    def refusal(self, request: Request) -> str | None:
        """Return what stands against it."""
        scheme = request.weight
        whole = isinstance(scheme.format, Int) and scheme.format.signed and scheme.format.bits <= 8
        known = whole and scheme.symmetric and scheme.granularity == PerChannel()
        if not known:
            return f"its weights are symmetric integers of 8 bits by channel, not {scheme}"
        if request.shape[1] % _WIDTHS:  # torch reads such rows past their end
            return f"its rows are a multiple of {_WIDTHS} wide, not {request.shape[1]}"
        return _scale_refusal(scheme)

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> Prepared:  # noqa: ARG002
        """Return codes and scales as the operator takes them."""
        return Prepared((qtensor.codes, qtensor.scale_values().reshape(-1).to(torch.bfloat16)), qtensor)

    def apply(
        self, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `inputs @ weight.T + bias`; sums are float32, rounded to bfloat16 before the bias is added."""
        return _product(torch.ops.aten._weight_int8pack_mm, inputs, prepared, bias, activation)


@dataclass(frozen=True, slots=True)
class Int4Pack:
    """Four bits by group."""

    name: str = "int4pack"
    purpose: Purpose = _PURPOSE

    def missing(self) -> None:
        """Return `None`."""

    def refusal(self, request: Request) -> str | None:
        """Return what stands against it."""
        scheme = request.weight
        grouped = isinstance(scheme.granularity, PerGroup) and scheme.granularity.size in _GROUPS
        known = scheme.format == Int(4) and scheme.symmetric and grouped
        if not known:
            sizes = ", ".join(map(str, _GROUPS))
            return f"its weights are symmetric int4 in groups of {sizes}, not {scheme}"
        assert isinstance(scheme.granularity, PerGroup)
        rows, width = request.shape
        if rows % _ROWS or width % scheme.granularity.size:
            return f"its weights have whole groups and a multiple of {_ROWS} rows, not {rows} rows of {width}"
        return _scale_refusal(scheme)

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> Prepared:  # noqa: ARG002
        """Return codes packed for this processor, and scales beside zeros by group."""
        granularity = qtensor.scheme.granularity
        assert isinstance(granularity, PerGroup)  # `refusal` says so
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(qtensor.codes.to(torch.int32) + 8, 1)
        scale = qtensor.scale_values().T.to(torch.bfloat16)
        numbers = torch.stack([scale, torch.zeros_like(scale)], dim=-1).contiguous()
        return Prepared((packed, granularity.size, numbers), qtensor)

    def apply(
        self, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `inputs @ weight.T + bias`; sums are float32, rounded to bfloat16 before the bias is added."""
        return _product(torch.ops.aten._weight_int4pack_mm_for_cpu, inputs, prepared, bias, activation)


def _product(
    operator: Any, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None
) -> Tensor:
    rows = inputs.reshape(-1, inputs.shape[-1])
    if not 0 < len(rows) <= _FEW or wants_gradient(inputs, bias):
        return Dequantize().apply(inputs, prepared.weight, bias, activation)
    product: Tensor = operator(rows.contiguous(), *prepared.arguments).reshape(*inputs.shape[:-1], -1)
    return product if bias is None else product + bias


def _scale_refusal(scheme: Scheme) -> str | None:
    if scheme.scale_type != "bfloat16":
        return f"its scales are bfloat16, not {scheme.scale_type or 'float32'}: quantize with dtype='bfloat16'"
    return None
