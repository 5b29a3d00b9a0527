"""A quantized linear layer as one operator of torch, `fewbit::linear`: compilers know its shape, and run it as it is.

Kernels that compute by NumPy and numba have no graph; torch.compile would break its own at each of them, and cannot
under `fullgraph=True`. An operator takes tensors and numbers only, so layers are known to it by number.
"""

from __future__ import annotations

from itertools import count
from typing import Protocol
from weakref import WeakValueDictionary

import torch
from torch import Tensor

#: Kernels that are not made of operators of torch.
UNTRACED = frozenset({"fbgemm"})
_NUMBERS = count()


class Linear(Protocol):
    """A layer that multiplies."""

    def product(self, inputs: Tensor) -> Tensor:
        """Return the output for `inputs` (..., in), which are rounded on the way, as (..., out), contiguous."""


_LAYERS: WeakValueDictionary[int, Linear] = WeakValueDictionary()


def numbered(layer: Linear) -> int:
    """Return a number for a layer, as long as there is one."""
    number = next(_NUMBERS)
    _LAYERS[number] = layer
    return number


@torch.library.custom_op("fewbit::linear", mutates_args=())
def linear(inputs: Tensor, layer: int, width: int) -> Tensor:
    """Return the output of `layer`, (..., width)."""
    found = _LAYERS[layer].product(inputs)
    assert found.shape[-1] == width
    return found


@linear.register_fake
def _(inputs: Tensor, layer: int, width: int) -> Tensor:  # noqa: ARG001
    return inputs.new_empty(*inputs.shape[:-1], width)
