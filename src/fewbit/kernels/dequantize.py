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
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Dequantize:
    """Dequantize the weight at every call."""

    def pack(self, qtensor: QTensor) -> dict[str, Tensor]:
        """Return the codes as they are; scales as int32 bit patterns, which `module.half()` does not convert."""
        packed = {"codes": qtensor.codes.contiguous()}
        if qtensor.zero_point is not None:
            packed["zero_point"] = qtensor.zero_point.contiguous()
        if isinstance(qtensor.scale, QTensor):
            return packed | {f"scale_{name}": tensor for name, tensor in self.pack(qtensor.scale).items()}
        return packed | {"scale": qtensor.scale.contiguous().view(torch.int32)}

    def unpack(self, packed: Mapping[str, Tensor], scheme: Scheme) -> QTensor:
        """Undo `pack`."""
        scale: Tensor | QTensor
        if scheme.scale_scheme is None:
            scale = packed["scale"].view(torch.float32)
        else:
            inner = {name.removeprefix("scale_"): tensor for name, tensor in packed.items() if name[:6] == "scale_"}
            scale = self.unpack(inner, scheme.scale_scheme)
        return QTensor(codes=packed["codes"], scale=scale, zero_point=packed.get("zero_point"), scheme=scheme)

    def linear(self, inputs: Tensor, packed: Mapping[str, Tensor], scheme: Scheme, bias: Tensor | None) -> Tensor:
        """Return `inputs @ weight.T + bias` with the weight rounded to the type of `inputs`."""
        weight = self.unpack(packed, scheme).dequantize().to(inputs.dtype)
        return functional.linear(inputs, weight, bias)

    def embedding(self, indices: Tensor, packed: Mapping[str, Tensor], scheme: Scheme, dtype: torch.dtype) -> Tensor:
        """Return the rows at `indices`; only those are dequantized."""
        rows = indices.reshape(-1)
        whole = self.unpack(packed, scheme)
        scale = whole.scale_values()
        if whole.scheme.granularity.box(whole.shape)[0] > 1:  # rows share scales: tensor, tile
            return whole.dequantize()[rows].to(dtype).reshape(*indices.shape, -1)  # type: ignore[no-any-return]
        picked = QTensor(
            codes=whole.codes[rows],
            scale=scale[rows],
            zero_point=None if whole.zero_point is None else whole.zero_point[rows],
            scheme=replace(scheme, scale_scheme=None),
        )
        values: Tensor = picked.dequantize()
        return values.to(dtype).reshape(*indices.shape, -1)
