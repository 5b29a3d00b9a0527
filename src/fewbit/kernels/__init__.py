"""How a quantized torch layer runs. A kernel packs a QTensor its own way and gives it back unchanged.

`unpack(pack(q)) == q`; `apply` computes exactly what the scheme says. `select` is the table.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Protocol

from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor


class Kernel(Protocol):
    """How a quantized layer runs; holds no state, the layer holds what `pack` returns."""

    def pack(self, qtensor: QTensor) -> dict[str, Tensor]:
        """Return the arrays to run from. None is of a floating type, so that `module.half()` leaves them alone."""

    def unpack(self, packed: Mapping[str, Tensor], scheme: Scheme) -> QTensor:
        """Undo `pack`."""

    def linear(self, inputs: Tensor, packed: Mapping[str, Tensor], scheme: Scheme, bias: Tensor | None) -> Tensor:
        """Return `inputs (..., in) @ weight.T + bias`."""

    def embedding(self, indices: Tensor, packed: Mapping[str, Tensor], scheme: Scheme, dtype: Any) -> Tensor:
        """Return the rows of the weight at `indices`."""


def select(scheme: Scheme) -> Kernel:  # noqa: ARG001
    """Return the kernel for `scheme`; this version has one, which dequantizes and multiplies."""
    from fewbit.kernels.dequantize import Dequantize

    return Dequantize()
