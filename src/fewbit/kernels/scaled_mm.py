"""Products of e4m3 inputs and weights on CUDA by `torch._scaled_mm`: scales of tensors, or of tokens and channels.

x @ w.T = s t sum(a b) for x = s a, w = t b; sums are float32, as far as tensor cores add them so.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.activation import Activation
from fewbit.formats.minifloat import Float
from fewbit.kernels import Request
from fewbit.kernels.cuda import missing, of_rounded_inputs, uneven
from fewbit.kernels.dequantize import Dequantize, wants_gradient
from fewbit.kernels.purpose import Purpose
from fewbit.kernels.row_codes import row_codes
from fewbit.kernels.window import Window
from fewbit.qtensor import QTensor
from fewbit.schemes.granularity import Granularity, PerChannel, PerTensor, PerToken
from fewbit.schemes.scheme import Scheme

_CAPABILITY = (8, 9)
#: Rows and columns of the weight are multiples of this.
_MULTIPLE = 16
_NAN = 0x7F


@dataclass(frozen=True, slots=True)
class Prepared:
    """A weight for `torch._scaled_mm`."""

    #: float8_e4m3fn (out, in).
    codes: Tensor
    #: float32 (1, out), or (1, 1) of a tensor.
    scale: Tensor
    #: As it is stored, for gradients.
    weight: QTensor


@dataclass(frozen=True, slots=True)
class ScaledMm:
    """Products of e4m3."""

    name: str = "scaled_mm"
    #: Tests run it on the CPU, where torch has it without speed.
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
        weight, given = request.weight, request.input
        assert given is not None  # of its purpose
        if why := uneven(request.shape, _MULTIPLE):
            return why
        if not _takes(weight, PerChannel()) or not _takes(given, PerToken()):
            return f"it takes e4m3 by token and channel, or by tensor, not inputs of {given} with weights of {weight}"
        whole = weight.granularity == given.granularity == PerTensor()
        if not whole and request.dtype != "bfloat16":
            return f"with a scale a token or channel it returns bfloat16, not {request.dtype}; tensor and tensor does"
        return None

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> Prepared:  # noqa: ARG002
        """Return codes as numbers, and scales."""
        codes = qtensor.codes.contiguous().view(torch.float8_e4m3fn)
        return Prepared(codes, qtensor.scale_values().reshape(1, -1).contiguous(), qtensor)

    def apply(
        self, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `rounded(inputs) @ weight.T + bias`; products are rounded to their type before the bias is added."""
        assert activation is not None  # of its purpose
        if wants_gradient(inputs, bias) or not inputs.numel():
            return Dequantize().apply(inputs, prepared.weight, bias, activation)
        codes, scale, _ = row_codes(inputs.detach(), activation)
        codes = codes.masked_fill(torch.isnan(inputs).reshape(codes.shape), _NAN).view(torch.float8_e4m3fn)
        if scale.numel() > 1 or prepared.scale.numel() > 1:
            own, other = scale.expand(len(codes), 1).contiguous(), prepared.scale.expand(1, len(prepared.codes))
        else:
            own, other = scale, prepared.scale
        kind = inputs.dtype
        product = torch._scaled_mm(codes, prepared.codes.t(), own, other.contiguous(), out_dtype=kind)
        product = product.reshape(*inputs.shape[:-1], -1)
        return product if bias is None else product + bias


def _takes(scheme: Scheme, rows: Granularity) -> bool:
    plain = scheme.format == Float(4, 3) and scheme.scale_scheme is None
    return plain and scheme.granularity in (rows, PerTensor())
