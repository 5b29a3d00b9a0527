"""How a quantized torch layer runs. A table lists the kernels, the fastest first; the last runs everything.

A kernel computes exactly what the schemes say, up to the order of float32 sums, which products in 16 bits round to
these; `refusal` says where it cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fewbit.catalogue import lookup
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from fewbit.activation import Activation

#: Kernels of weights with scales by name, the first that does not refuse is taken.
KERNELS = {
    "fbgemm": "fewbit.kernels.fbgemm:Fbgemm",
    "int8pack": "fewbit.kernels.bfloat16_packs:Int8Pack",
    "int4pack": "fewbit.kernels.bfloat16_packs:Int4Pack",
    "dequantize": "fewbit.kernels.dequantize:Dequantize",
}
#: Kernels of weights that are cast.
KERNELS_OF_CASTS = {
    "half": "fewbit.kernels.half_precision:HalfPrecision",
    "own-type": "fewbit.kernels.half_precision:OwnType",
    "dequantize": "fewbit.kernels.dequantize:Dequantize",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What a product `inputs @ weight.T` is made of."""

    weight: Scheme
    #: `None`: inputs are not rounded.
    input: Scheme | None
    #: cpu, cuda, ...
    device: str
    #: Type of the inputs: float32, bfloat16, float16.
    dtype: str


class Kernel(Protocol):
    """How a quantized layer runs; holds no state, the layer holds what `prepare` returns."""

    #: The name in its table.
    name: str
    #: Whether `linear` rounds the inputs itself.
    rounds: bool
    #: Whether it is there for being faster than the float layer.
    fast: bool

    def refusal(self, request: Request) -> str | None:
        """Return why it cannot compute this, with the remedy where there is one, or `None`."""

    def prepare(self, qtensor: QTensor) -> Any:
        """Return what the calls run from; made at the first of them, never stored."""

    def linear(self, inputs: Tensor, prepared: Any, bias: Tensor | None, activation: Activation | None) -> Tensor:
        """Return `rounded(inputs) (..., in) @ weight.T + bias`, of the type of the inputs."""


def select(request: Request) -> Kernel:
    """Return the first kernel of the table that computes this."""
    return next(kernel for kernel in _kernels(request) if kernel.refusal(request) is None)


def refusals(request: Request) -> dict[str, str]:
    """Return why the kernels before the one selected are not, as far as they are for rounded inputs, or for others."""
    found: dict[str, str] = {}
    for kernel in _kernels(request):
        why = kernel.refusal(request)
        if why is None:
            break
        if kernel.rounds == (request.input is not None):
            found[kernel.name] = why
    return found


def _kernels(request: Request) -> list[Kernel]:
    table = KERNELS if request.weight.scaled else KERNELS_OF_CASTS
    return [lookup(table, name, what="kernel")() for name in table]
