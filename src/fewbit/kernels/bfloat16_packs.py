"""Weights of 8 and 4 bits times a few rows of bfloat16, by the operators that torch brings for decoding on the CPU."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.activation import Activation
from fewbit.formats.integer import Int
from fewbit.kernels import Request
from fewbit.kernels.few_rows import Prepared, group_numbers, int4_refusal, product, scale_refusal
from fewbit.kernels.purpose import Purpose
from fewbit.kernels.window import Window
from fewbit.qtensor import QTensor
from fewbit.schemes.granularity import PerChannel

_PURPOSE = Purpose(device="cpu", dtypes=("bfloat16",), rounds=False, rows=4, needs="scales of bfloat16")
#: Widths are multiples of this: torch 2.13 goes by 8 numbers on AVX2 and by 16 on AVX512, and has no tail.
_WIDTHS = 32


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
        if not (whole and scheme.symmetric and scheme.granularity == PerChannel()):
            return f"its weights are symmetric integers of 8 bits by channel, not {scheme}"
        if request.shape[1] % _WIDTHS:  # torch reads such rows past their end
            return f"its rows are a multiple of {_WIDTHS} wide, not {request.shape[1]}"
        return scale_refusal(scheme)

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> Prepared:  # noqa: ARG002
        """Return codes and scales as the operator takes them."""
        return Prepared((qtensor.codes, qtensor.scale_values().reshape(-1).to(torch.bfloat16)), qtensor)

    def apply(
        self, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `inputs @ weight.T + bias`; sums are float32, rounded to bfloat16 before the bias is added."""
        return product(torch.ops.aten._weight_int8pack_mm, inputs, prepared, bias, activation)


@dataclass(frozen=True, slots=True)
class Int4Pack:
    """Four bits by group."""

    name: str = "int4pack"
    purpose: Purpose = _PURPOSE

    def missing(self) -> None:
        """Return `None`."""

    def refusal(self, request: Request) -> str | None:
        """Return what stands against it."""
        return int4_refusal(request, rows=16, columns=2)

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> Prepared:  # noqa: ARG002
        """Return codes packed for this processor, and scales beside zeros by group."""
        packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(qtensor.codes.to(torch.int32) + 8, 1)
        return Prepared((packed, *group_numbers(qtensor)), qtensor)

    def apply(
        self, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `inputs @ weight.T + bias`; sums are float32, rounded to bfloat16 before the bias is added."""
        return product(torch.ops.aten._weight_int4pack_mm_for_cpu, inputs, prepared, bias, activation)
