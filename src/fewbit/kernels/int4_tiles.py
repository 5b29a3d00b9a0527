"""Weights of 4 bits by group times a few rows of bfloat16 on CUDA, by the operator that torch brings for decoding.

Codes lie in tiles as tensor cores take them: two a byte, the first in the high half, before torch lays out the tiles.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fewbit.activation import Activation
from fewbit.kernels import Request
from fewbit.kernels.cuda import missing
from fewbit.kernels.few_rows import Prepared, group_numbers, int4_refusal, product
from fewbit.kernels.purpose import Purpose
from fewbit.kernels.window import Window
from fewbit.qtensor import QTensor

_CAPABILITY = (8, 0)
#: Of torch, since which the halves of a byte are packed.
_RELEASE = (2, 5)
_PURPOSE = Purpose(
    device="cuda", dtypes=("bfloat16",), rounds=False, measured=False,
    needs="compute capability 8.0; torch 2.5; scales of bfloat16",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Int4Tiles:
    """Four bits by group."""

    name: str = "int4tiles"
    purpose: Purpose = _PURPOSE

    def missing(self) -> str | None:
        """Return what the machine at hand lacks for it."""
        return missing(_CAPABILITY, _RELEASE)

    def refusal(self, request: Request) -> str | None:
        """Return what stands against it."""
        return int4_refusal(request, rows=8, columns=32)

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> Prepared:  # noqa: ARG002
        """Return codes packed in tiles, and scales beside zeros by group."""
        tiles = next(count for count in (8, 4, 2) if qtensor.shape[1] % (16 * count) == 0)
        packed = torch.ops.aten._convert_weight_to_int4pack(halves(qtensor.codes), tiles)
        return Prepared((packed, *group_numbers(qtensor)), qtensor)

    def apply(
        self, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `inputs @ weight.T + bias`; sums are float32, rounded to bfloat16 before the bias is added."""
        return product(torch.ops.aten._weight_int4pack_mm, inputs, prepared, bias, activation)


def halves(codes: Tensor) -> Tensor:
    """Return int8 `codes` (out, in) of 4 bits, counted from -8, as uint8 (out, in / 2), the first in the high half."""
    counted = (codes + 8).to(torch.uint8)
    return (counted[:, ::2] << 4 | counted[:, 1::2]).contiguous()
