"""Products in 16 bits: weight and inputs are the same cast, and so is what the processor multiplies.

y = cast(x) @ w.T with float32 sums that are rounded to the type and saturate; then the type of x, and the bias. Fast
where the instruction set has such products: AVX512-BF16, AVX512-FP16 or AMX-FP16, tensor cores.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from fewbit.activation import Activation
from fewbit.formats.cast import Cast
from fewbit.kernels import Request
from fewbit.kernels.purpose import Purpose
from fewbit.kernels.window import Window
from fewbit.numerics import sixteen_bits
from fewbit.numerics.instructions import multiplies
from fewbit.qtensor import QTensor

#: A convolution that sums fewer products for each output waits for the casts instead.
_DEEP = 128
_PURPOSE = Purpose(
    device=None, dtypes=("float32", "bfloat16", "float16"), rounds=True,
    needs="AVX512-BF16, AVX512-FP16 or AMX-FP16; tensor cores",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class HalfPrecision:
    """Weight and inputs are multiplied as what they were cast to."""

    name: str = "half"
    purpose: Purpose = _PURPOSE

    def missing(self) -> None:
        """Return `None`: what the processor lacks depends on the type."""

    def refusal(self, request: Request) -> str | None:
        """Return what stands against it."""
        cast = request.weight.format
        if not isinstance(cast, Cast) or request.input != request.weight:
            return "its weights and inputs are the same cast"
        if request.dtype == cast.dtype:
            return f"the model computes in {request.dtype} already"
        if not multiplies(cast.dtype, request.device):
            where = "this processor" if request.device == "cpu" else f"this {request.device} device"
            return f"{where} has no instructions for products in {cast.name}"
        return None

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> Tensor:  # noqa: ARG002
        """Return the weight as numbers of its type; shares memory."""
        return native(qtensor)

    def apply(
        self,
        inputs: Tensor,
        prepared: Tensor,
        bias: Tensor | None,
        activation: Activation | None = None,  # noqa: ARG002  # the same cast as that of the weight
    ) -> Tensor:
        """Return `cast(inputs) @ weight.T + bias`."""
        output = product(functional.linear, inputs, prepared)
        return output if bias is None else output + bias


@dataclass(frozen=True, slots=True)
class OwnType:
    """Weights that are cast to the type that the model computes in: the float layer, as fast as it was."""

    name: str = "own-type"
    purpose: None = None

    def missing(self) -> None:
        """Return `None`."""

    def refusal(self, request: Request) -> str | None:
        """Return what stands against it."""
        cast = request.weight.format
        if isinstance(cast, Cast) and request.dtype == cast.dtype and request.input in (None, request.weight):
            return None
        return "its weights are a cast to the type of the model"

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> Tensor:  # noqa: ARG002
        """Return the weight as numbers of its type; shares memory."""
        return native(qtensor)

    def apply(
        self, inputs: Tensor, prepared: Tensor, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `inputs @ weight.T + bias`; inputs that are cast are so already, but for infinity."""
        largest = torch.finfo(prepared.dtype).max
        return functional.linear(inputs.clamp(-largest, largest) if activation else inputs, prepared, bias)


def convolution_refusal(request: Request, depth: int) -> str | None:
    """Return what stands against a convolution in 16 bits that sums `depth` products for each output."""
    if why := HalfPrecision().refusal(request):
        return why
    if depth < _DEEP:
        return f"of {depth} products for each output, fewer than {_DEEP}, casting costs more than it saves"
    return None


def native(qtensor: QTensor) -> Tensor:
    """Return the weight of a cast as numbers of its type; shares memory."""
    cast = qtensor.scheme.format
    assert isinstance(cast, Cast)  # `refusal` says so
    numbers: Tensor = sixteen_bits.numbers(qtensor.codes, cast.dtype)
    return numbers


def product(operation: Callable[[Tensor, Tensor], Tensor], inputs: Tensor, weight: Tensor) -> Tensor:
    """Return `operation(cast(inputs), weight)` in the type of the inputs; what overflows saturates."""
    largest = torch.finfo(weight.dtype).max
    output = operation(inputs.to(weight.dtype).clamp(-largest, largest), weight)
    return output.clamp(-largest, largest).to(inputs.dtype)
