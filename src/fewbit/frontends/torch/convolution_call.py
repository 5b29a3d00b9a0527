"""What the forward of a convolution's subclass hands to torch's convolution: its own padding, done before the product.

The call is caught before it is computed; a subclass that computes with its weight first hands on another weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Torch's convolutions, and their arguments in order.
FUNCTIONS = (torch.conv1d, torch.conv2d, torch.conv3d)
ARGUMENTS = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")


@dataclass(frozen=True, slots=True)
class ConvolutionCall:
    """The arguments of a call; a size that is given once holds for every axis."""

    inputs: Tensor
    weight: Tensor
    stride: Any = 1
    padding: Any = 0
    dilation: Any = 1
    groups: int = 1


class _CaughtError(BaseException):
    """Carries a call out of a forward; no `except Exception` inside it stops this."""

    def __init__(self, call: ConvolutionCall) -> None:
        self.call = call


class _Catch(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        named = kwargs or {}
        if func not in FUNCTIONS:
            return func(*args, **named)
        given = dict(zip(ARGUMENTS, args, strict=False)) | named
        given.pop("bias", None)
        raise _CaughtError(ConvolutionCall(given.pop("input"), given.pop("weight"), **given))


@torch.no_grad()
def caught(forward: Any, inputs: Tensor) -> ConvolutionCall | None:
    """Return the first convolution that `forward(inputs)` calls, which is not computed; `None`: it calls none."""
    try:
        with _Catch():
            forward(inputs)
    except _CaughtError as error:
        return error.call
    return None


def each(size: Any, axes: int) -> tuple[int, ...]:
    """Return `size`, which may be given once for all, for every axis."""
    return (size,) * axes if isinstance(size, int) else tuple(size) * (axes if len(size) == 1 else 1)
