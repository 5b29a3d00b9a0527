"""The reference kernel: dequantize to float32, round to the input's type, multiply. Any scheme, any device.

weight = dequantize(q).to(input.dtype); output = input @ weight.T + bias.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.nn import functional

from fewbit.activation import Activation
from fewbit.kernels import Request
from fewbit.kernels.window import Window
from fewbit.qtensor import QTensor


class Weight(Protocol):
    """What a weight is dequantized from: a QTensor, or what holds one packed."""

    def dequantize(self) -> Tensor:
        """Return the float32 weight (out, in)."""


@dataclass(frozen=True, slots=True)
class Deferred:
    """A weight that is unpacked each time, so that nothing of it is kept between a forward and its way back."""

    unpack: Callable[[], QTensor]

    def dequantize(self) -> Tensor:
        """Return the float32 weight (out, in)."""
        found: Tensor = self.unpack().dequantize()
        return found


@dataclass(frozen=True, slots=True)
class Dequantize:
    """Dequantize the weight at every call."""

    name: str = "dequantize"
    purpose: None = None

    def missing(self) -> None:
        """Return `None`."""

    def refusal(self, request: Request) -> str | None:  # noqa: ARG002
        """Return `None`."""
        return None

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> QTensor:  # noqa: ARG002
        """Return the weight as it is stored."""
        return qtensor

    def apply(
        self, inputs: Tensor, prepared: Weight, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `inputs @ weight.T + bias` with the weight rounded to the type of `inputs`."""
        if activation is not None:
            inputs = activation.rounded(inputs).to(inputs.dtype)
        if wants_gradient(inputs, bias) and not torch.compiler.is_compiling():
            found: Tensor = _Product.apply(inputs, bias, prepared)  # type: ignore[no-untyped-call]
            return found
        return functional.linear(inputs, prepared.dequantize().to(inputs.dtype), bias)


class _Product(torch.autograd.Function):
    """The product with a frozen weight: for the way back it keeps the codes and dequantizes them again.

    dL/dx = dL/dy W. Source: Dettmers et al., "QLoRA", arXiv:2305.14314, section 3.
    """

    @staticmethod
    def forward(inputs: Tensor, bias: Tensor | None, weight: Weight) -> Tensor:
        return functional.linear(inputs, weight.dequantize().to(inputs.dtype), bias)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor | None, Weight], output: Tensor) -> None:  # noqa: ARG004
        ctx.weight, ctx.dtype = inputs[2], inputs[0].dtype
        ctx.bias_dtype = None if inputs[1] is None else inputs[1].dtype

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        given = gradients[0]
        before = bias = None
        if ctx.needs_input_grad[0]:
            # Under autocast the output is of another type than the input.
            before = (given @ ctx.weight.dequantize().to(ctx.dtype).to(given.dtype)).to(ctx.dtype)
        if ctx.needs_input_grad[1]:
            bias = given.flatten(0, -2).sum(0).to(ctx.bias_dtype)
        return before, bias, None


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Whether a gradient is to flow back to one of the tensors, for which the fast operators have none."""
    return torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors)


def embedding(indices: Tensor, weight: QTensor, dtype: torch.dtype) -> Tensor:
    """Return the rows of `weight` at `indices`; only those are dequantized."""
    rows = indices.reshape(-1)
    if not len(rows):
        return torch.empty(*indices.shape, weight.shape[1], dtype=dtype, device=weight.codes.device)
    if not weight.scheme.scaled:
        return weight.scheme.format.decode(weight.codes[rows]).to(dtype).reshape(*indices.shape, -1)  # type: ignore[no-any-return]
    if weight.scheme.granularity.box(weight.shape)[0] > 1:  # rows share scales: tensor, tile
        return weight.dequantize()[rows].to(dtype).reshape(*indices.shape, -1)  # type: ignore[no-any-return]
    scheme, minimum = weight.scheme, weight.minimum_values()
    picked = QTensor(
        codes=weight.codes[rows],
        scale=weight.scale_values()[rows],
        zero_point=None if weight.zero_point is None else weight.zero_point[rows],
        scheme=replace(scheme, scale_scheme=None, scale_type="float16" if scheme.span else scheme.scale_type),
        codebook=None if weight.codebook is None else weight.codebook[rows],
        minimum=None if minimum is None else minimum[rows],
    )
    values: Tensor = picked.dequantize()
    return values.to(dtype).reshape(*indices.shape, -1)
