"""The reference kernel: dequantize to float32, round to the input's type, multiply. Any scheme, any device.

weight = dequantize(q).to(input.dtype); output = input @ weight.T + bias.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional

from fewbit.qtensor import QTensor
from fewbit.schemes.granularity import PerTensor
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Dequantize:
    """Dequantize the weight at every call."""

    def pack(self, qtensor: QTensor) -> dict[str, Tensor]:
        """Return the codes as they are; the scale as int32 bit patterns, which `module.half()` does not convert."""
        packed = {"codes": qtensor.codes.contiguous(), "scale": qtensor.scale.contiguous().view(torch.int32)}
        return packed if qtensor.zero_point is None else {**packed, "zero_point": qtensor.zero_point.contiguous()}

    def unpack(self, packed: Mapping[str, Tensor], scheme: Scheme) -> QTensor:
        """Undo `pack`."""
        scale = packed["scale"].view(torch.float32)
        return QTensor(codes=packed["codes"], scale=scale, zero_point=packed.get("zero_point"), scheme=scheme)

    def linear(self, inputs: Tensor, packed: Mapping[str, Tensor], scheme: Scheme, bias: Tensor | None) -> Tensor:
        """Return `inputs @ weight.T + bias` with the weight rounded to the type of `inputs`."""
        weight = self.unpack(packed, scheme).dequantize().to(inputs.dtype)
        return functional.linear(inputs, weight, bias)

    def embedding(self, indices: Tensor, packed: Mapping[str, Tensor], scheme: Scheme, dtype: torch.dtype) -> Tensor:
        """Return the rows at `indices`; only those are dequantized."""
        rows = indices.reshape(-1)
        whole = self.unpack(packed, scheme)
        shared = isinstance(scheme.granularity, PerTensor)
        picked = replace(
            whole,
            codes=whole.codes[rows],
            scale=whole.scale if shared else whole.scale[rows],
            zero_point=whole.zero_point if shared or whole.zero_point is None else whole.zero_point[rows],
        )
        values: Tensor = picked.dequantize()
        return values.to(dtype).reshape(*indices.shape, -1)
