"""Which kernel a quantized layer runs on, and why no faster one: told before the layer is made."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.interfaces import Execution, Layer
from fewbit.kernels import Request, refusals, select
from fewbit.kernels.half_precision import convolution_refusal
from fewbit.schemes.scheme import Scheme


def execution(model: nn.Module, layer: Layer, weight: Scheme | None, rounded: Scheme | None) -> Execution:
    """Return how `layer` runs with this weight and these inputs, where it lies and in the type that it has."""
    if weight is None:
        return Execution(kernel="float32 product", fast=False, why=("no integer kernel multiplies two activations",))
    if layer.kind == "embedding":
        return Execution(kernel="rows", fast=True)  # a few rows are dequantized, none is multiplied
    module = model.get_submodule(layer.name)
    dtype, device = _place(module)
    if device == "meta":  # a model without numbers is one that will be loaded on the CPU, in float32
        dtype, device = "float32", "cpu"
    request = Request(weight=weight, input=rounded, device=device, dtype=dtype)
    if layer.kind == "conv":
        return _convolution(request, module)
    kernel = select(request)
    return Execution(kernel=kernel.name, fast=kernel.fast, why=tuple(dict.fromkeys(refusals(request).values())))


def _convolution(request: Request, module: Any) -> Execution:
    """Return how a convolution runs: in 16 bits, or on its dequantized weight."""
    if request.weight.scaled:
        why: str | None = "no integer kernel takes a convolution"
    else:
        form = module.convolution if isinstance(module, QuantizedLayer) else Convolution.of(module)
        assert isinstance(form, Convolution)
        own = "it is a subclass, whose forward is its own" if form.own is not None else None
        why = own or convolution_refusal(request, form.depth)
    return Execution(kernel="dequantize", fast=False, why=(why,)) if why else Execution(kernel="half", fast=True)


def _place(module: Any) -> tuple[str, str]:
    if isinstance(module, QuantizedLayer):
        dtype: torch.dtype = module.dtype
        device: torch.device = module.qtensor.codes.device
    else:
        dtype, device = module.weight.dtype, module.weight.device
    return str(dtype).removeprefix("torch."), device.type
