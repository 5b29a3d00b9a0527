"""Which kernel a quantized layer runs on, and why no faster one: told before the layer is made."""

from __future__ import annotations

from fewbit.interfaces import Execution, Layer
from fewbit.kernels import Request, refusals, select
from fewbit.schemes.scheme import Scheme


def execution(layer: Layer, weight: Scheme, rounded: Scheme | None, device: str) -> Execution:
    """Return how `layer` runs with this weight and these inputs, which are float32, on `device`."""
    if layer.kind == "embedding":
        return Execution(kernel="rows", fast=True)  # a few rows are dequantized, none is multiplied
    if layer.kind == "conv":
        return Execution(kernel="dequantize", fast=False, why=("no integer kernel takes a convolution",))
    request = Request(weight=weight, input=rounded, device=device, dtype="float32")
    kernel = select(request)
    return Execution(kernel=kernel.name, fast=kernel.fast, why=tuple(dict.fromkeys(refusals(request).values())))
