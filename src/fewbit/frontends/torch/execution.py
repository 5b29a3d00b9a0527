"""Which kernel a quantized layer runs on, and why no faster one: told before the layer is made."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import nn

from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.frontends.torch.quantized_convolution import QuantizedConvolution
from fewbit.interfaces import Execution, Layer
from fewbit.kernels import Request, refusals, select
from fewbit.kernels.half_precision import convolution_refusal
from fewbit.schemes.scheme import Scheme

#: Numbers an axis of an input whose size is not known.
_USUAL = 64


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
    request = Request(weight=weight, input=rounded, device=device, dtype=dtype, shape=layer.shape)
    convolution = module.convolution if isinstance(module, QuantizedConvolution) else Convolution.of(module)
    if convolution is not None and not weight.scaled:
        return _in_sixteen_bits(request, convolution)
    if convolution is not None:
        # A subclass may read other sizes otherwise.
        shape = (1, convolution.in_channels, *(_USUAL for _ in convolution.kernel))
        request = replace(request, window=convolution.window(shape, biased=module.bias is not None))
    return _selected(request)


def _selected(request: Request) -> Execution:
    kernel = select(request)
    if kernel.purpose is None:
        why = tuple(dict.fromkeys(refusals(request).values()))
        if not why and request.weight.scaled:
            why = (f"no kernel is for {request.layers} on {request.device}",)
        return Execution(kernel=kernel.name, fast=False, why=why)
    slower = kernel.purpose.slower(request)
    why = () if slower is None else (slower,)
    return Execution(kernel=kernel.name, fast=slower is None, rows=kernel.purpose.rows, why=why)


def _in_sixteen_bits(request: Request, convolution: Convolution) -> Execution:
    """Return how a convolution of casts runs: in 16 bits, or on its dequantized weight."""
    own = "it is a subclass, whose forward is its own" if convolution.own is not None else None
    why = own or convolution_refusal(request, convolution.depth)
    return Execution(kernel="dequantize", fast=False, why=(why,)) if why else Execution(kernel="half", fast=True)


def _place(module: Any) -> tuple[str, str]:
    if isinstance(module, QuantizedLayer):
        dtype: torch.dtype = module.dtype
        device: torch.device = module.qtensor.codes.device
    else:
        dtype, device = module.weight.dtype, module.weight.device
    return str(dtype).removeprefix("torch."), device.type
