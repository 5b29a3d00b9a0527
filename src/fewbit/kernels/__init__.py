"""How a quantized torch layer runs. A table lists the kernels, the fastest first; the last runs everything.

A kernel computes exactly what the schemes say, up to the order of float32 sums, which products in 16 bits round to
these; `refusal` says where it cannot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from fewbit.catalogue import lookup
from fewbit.kernels.purpose import Purpose, layers
from fewbit.kernels.window import Window
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor

    from fewbit.activation import Activation

#: Kernels of weights with scales by name, the first that does not refuse is taken.
KERNELS = {
    "fbgemm": "fewbit.kernels.fbgemm:Fbgemm",
    "onednn": "fewbit.kernels.onednn:Onednn",
    "int8pack": "fewbit.kernels.bfloat16_packs:Int8Pack",
    "int4pack": "fewbit.kernels.bfloat16_packs:Int4Pack",
    "scaled_mm": "fewbit.kernels.scaled_mm:ScaledMm",
    "int_mm": "fewbit.kernels.int_mm:IntMm",
    "int4tiles": "fewbit.kernels.int4_tiles:Int4Tiles",
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
    """What a product `inputs @ weight.T` is made of, or a convolution."""

    weight: Scheme
    #: `None`: inputs are not rounded.
    input: Scheme | None
    #: cpu, cuda, ...
    device: str
    #: Type of the inputs: float32, bfloat16, float16.
    dtype: str
    #: Of the weight: (out, in), of a convolution (out, in / groups * positions).
    shape: tuple[int, int]
    #: How a convolution reads its input; `None`: this is a product.
    window: Window | None = None

    @property
    def layers(self) -> str:
        """What is asked for, in words."""
        return layers(rounds=self.input is not None, convolves=self.window is not None)


class Kernel(Protocol):
    """How a quantized layer runs; holds no state, the layer holds what `prepare` returns."""

    #: The name in its table.
    name: str

    @property
    def purpose(self) -> Purpose | None:
        """Where it is faster than the float layer; `None`: nowhere, it runs everything."""

    def missing(self) -> str | None:
        """Return what the machine at hand lacks for it, or `None`."""

    def refusal(self, request: Request) -> str | None:
        """Return why it cannot compute these schemes, with the remedy where there is one, or `None`."""

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> Any:
        """Return what the calls run from; made at the first of them, never stored."""

    def apply(self, inputs: Tensor, prepared: Any, bias: Tensor | None, activation: Activation | None) -> Tensor:
        """Return `rounded(inputs) (..., in) @ weight.T + bias`, or the convolution, of the type of the inputs."""


def why_not(kernel: Kernel, request: Request) -> str | None:
    """Return why `kernel` does not run this, or `None`."""
    found = kernel.purpose.refusal(request) or kernel.missing() if kernel.purpose else None
    return found or kernel.refusal(request)


def select(request: Request) -> Kernel:
    """Return the first kernel of its table that computes this."""
    return next(kernel for kernel in _kernels(request) if why_not(kernel, request) is None)


def refusals(request: Request) -> dict[str, str]:
    """Return why the kernels before the one selected are not, as far as such layers are their business."""
    found: dict[str, str] = {}
    for kernel in _kernels(request):
        why = why_not(kernel, request)
        if why is None:
            break
        if kernel.purpose and kernel.purpose.covers(request):
            found[kernel.name] = why
    return found


def kernels() -> list[Kernel]:
    """Return the kernels of both tables in their order, the one that runs everything last."""
    names = {**KERNELS, **KERNELS_OF_CASTS}
    last = names.pop("dequantize")
    return [lookup(names | {"dequantize": last}, name, what="kernel")() for name in (*names, "dequantize")]


def _kernels(request: Request) -> list[Kernel]:
    table = KERNELS if request.weight.scaled else KERNELS_OF_CASTS
    return [lookup(table, name, what="kernel")() for name in table]
