"""Integer products on CUDA by `torch._int_mm`: int8 inputs by token or tensor, int8 weights by channel or tensor.

x @ w.T = s t (sum(code v) - z sum(v)) for x = s (code - z), w = t v; sums are int32.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fewbit.activation import Activation
from fewbit.kernels import Request, integer_products
from fewbit.kernels.cuda import missing, of_rounded_inputs, uneven
from fewbit.kernels.dequantize import Dequantize, wants_gradient
from fewbit.kernels.purpose import Purpose
from fewbit.kernels.row_codes import row_codes
from fewbit.kernels.window import Window
from fewbit.qtensor import QTensor

_CAPABILITY = (7, 5)
#: cuBLAS takes more than 16 rows, and rows and columns of the weight in multiples of 8.
_ROWS = 32
_MULTIPLE = 8


@dataclass(frozen=True, slots=True)
class Prepared:
    """A weight for `torch._int_mm`."""

    #: int8 (out, in).
    codes: Tensor
    #: float32 (out,), and the sums of the codes.
    scale: Tensor
    sums: Tensor
    #: As it is stored, for gradients.
    weight: QTensor


@dataclass(frozen=True, slots=True)
class IntMm:
    """Integer products of rounded inputs."""

    name: str = "int_mm"
    #: Tests run it on the CPU, where FBGEMM is faster.
    device: str = "cuda"

    @property
    def purpose(self) -> Purpose:
        """What it is for."""
        return of_rounded_inputs(self.device, _CAPABILITY)

    def missing(self) -> str | None:
        """Return what the machine at hand lacks for it."""
        return missing(_CAPABILITY) if self.device == "cuda" else None

    def refusal(self, request: Request) -> str | None:
        """Return what stands against it."""
        return uneven(request.shape, _MULTIPLE) or integer_products.refusal(request, lambda: False)

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> Prepared:  # noqa: ARG002
        """Return codes, scales and sums of codes."""
        scale = torch.broadcast_to(qtensor.scale_values().reshape(-1), qtensor.shape[:1])
        codes = qtensor.codes.to(torch.int8).contiguous()
        return Prepared(codes, scale, codes.sum(dim=1, dtype=torch.float32), qtensor)

    def apply(
        self, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `rounded(inputs) @ weight.T + bias`, computed in float32 but for the integer sums."""
        assert activation is not None  # of its purpose
        if wants_gradient(inputs, bias) or not inputs.numel():
            return Dequantize().apply(inputs, prepared.weight, bias, activation)
        codes, scale, zero = row_codes(inputs.detach(), activation)
        rows = len(codes)
        if activation.scale is not None:  # a row with NaN, for which no code stands, is NaN
            scale = torch.where(torch.isnan(inputs).any(dim=-1).reshape(-1, 1), torch.nan, scale)
        middle = 0 if codes.dtype == torch.int8 else 128
        codes = codes if not middle else (codes.to(torch.int16) - middle).to(torch.int8)
        codes = functional.pad(codes, (0, 0, 0, max(0, _ROWS - rows)))
        outputs = torch._int_mm(codes, prepared.codes.t())[:rows] * scale
        if zero is not None or middle:
            shift = scale * (-middle if zero is None else zero - middle)
            outputs = outputs.addr_(shift.reshape(-1).expand(rows), prepared.sums, alpha=-1)
        added = torch.zeros_like(prepared.scale) if bias is None else bias.float()
        outputs = torch.addcmul(added, outputs, prepared.scale)
        return outputs.to(inputs.dtype).reshape(*inputs.shape[:-1], -1)
