"""Quantized torch layers: they hold what their kernel packed, and their state_dict is canonical.

Canonical means, beside `bias`: `weight_codes` (dense n-bit bytes, rows along the output axis), `weight_scale` (in the
scheme's type), `weight_zero_point` (int8) and `weight_scheme` (the notation, as UTF-8 bytes).
"""

from __future__ import annotations

from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from fewbit.kernels import select
from fewbit.numerics.packing import pack, unpack
from fewbit.qtensor import QTensor, scale_fits, scale_shape
from fewbit.schemes.scheme import Scheme


class QuantizedLayer(nn.Module):
    """A layer whose weight is a QTensor; base of the concrete layers below."""

    #: Names of the canonical tensors, in their order.
    CANONICAL: ClassVar[tuple[str, ...]] = (
        "weight_codes",
        "weight_scale",
        "weight_zero_point",
        "weight_scheme",
    )

    def __init__(self, qtensor: QTensor, dtype: torch.dtype) -> None:
        super().__init__()
        self.scheme: Scheme = qtensor.scheme
        self.shape = qtensor.shape
        #: Type of the float weight that was replaced; `weight` has it, and so do an embedding's rows.
        self.dtype = dtype
        self._kernel = select(qtensor.scheme)
        self._pack(qtensor)

    @property
    def qtensor(self) -> QTensor:
        """The quantized weight (out, in)."""
        return self._kernel.unpack(self._packed(), self.scheme)

    @property
    def weight(self) -> Tensor:
        """The dequantized weight, for code that reads `layer.weight`; made anew at each access."""
        weight: Tensor = self.qtensor.dequantize().to(self.dtype)
        return weight

    def canonical(self) -> dict[str, Tensor]:
        """Return the tensors that stand for this layer's weight in a state_dict."""
        q = self.qtensor
        patterns = self.scheme.format.to_unsigned(q.codes)
        scale_type = self.scheme.scale_type or "float32"
        scale = q.scale.to(getattr(torch, scale_type)) if bool(scale_fits(q.scale, scale_type).all()) else q.scale
        tensors = {"weight_codes": pack(patterns, self.scheme.format.bits), "weight_scale": scale}
        if q.zero_point is not None:
            tensors["weight_zero_point"] = q.zero_point
        text = str(self.scheme).encode()
        return {**tensors, "weight_scheme": torch.frombuffer(bytearray(text), dtype=torch.uint8)}

    def extra_repr(self) -> str:
        """Return shape and notation, for `print(model)`."""
        return f"{self.shape[1]} -> {self.shape[0]}, weight={self.scheme}"

    def _apply(self, fn: Any, recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        # `half()` and its kin convert no integer buffer, so a probe tells the type that floats have from now on.
        self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return self

    def _packed(self) -> dict[str, Tensor]:
        return {name: getattr(self, f"packed_{name}") for name in self._packed_names}

    def _pack(self, qtensor: QTensor) -> None:
        packed = self._kernel.pack(qtensor)
        self._packed_names = tuple(packed)
        for name, tensor in packed.items():
            self.register_buffer(f"packed_{name}", tensor, persistent=False)

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name, tensor in self.canonical().items():
            destination[prefix + name] = tensor

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        found = {name: state_dict[prefix + name] for name in self.CANONICAL if prefix + name in state_dict}
        others = {key: value for key, value in state_dict.items() if key.removeprefix(prefix) not in self.CANONICAL}
        super()._load_from_state_dict(others, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs)
        expected = self.canonical()
        missing = [prefix + name for name in expected if name not in found]
        missing_keys += missing
        unexpected_keys += [prefix + name for name in found if name not in expected]
        if missing:
            return
        if not torch.equal(found["weight_scheme"].cpu(), expected["weight_scheme"]):
            stored = bytes(found["weight_scheme"].cpu().tolist()).decode(errors="replace")
            error_msgs.append(f"{prefix}weight is stored as {stored!r}, the layer has {str(self.scheme)!r}")
            return
        for name in expected:
            if name != "weight_scheme" and found[name].shape != expected[name].shape:
                error_msgs.append(
                    f"{prefix}{name} has shape {list(found[name].shape)}, not {list(expected[name].shape)}"
                )
                return
        self._pack(self._from_canonical(found))

    def _from_canonical(self, tensors: dict[str, Tensor]) -> QTensor:
        device = getattr(self, f"packed_{self._packed_names[0]}").device
        patterns = unpack(tensors["weight_codes"].to(device), self.scheme.format.bits, self.shape[1])
        zero_point = tensors.get("weight_zero_point")
        return QTensor(
            codes=self.scheme.format.from_unsigned(patterns),
            scale=tensors["weight_scale"].to(device, torch.float32).reshape(scale_shape(self.shape, self.scheme)),
            zero_point=None if zero_point is None else zero_point.to(device),
            scheme=self.scheme,
        )


class QuantizedLinear(QuantizedLayer):
    """`nn.Linear`, and transformers' `Conv1D`, with a quantized weight."""

    def __init__(self, qtensor: QTensor, bias: nn.Parameter | None, dtype: torch.dtype) -> None:
        super().__init__(qtensor, dtype)
        self.bias: nn.Parameter | None
        self.register_parameter("bias", bias)
        self.out_features, self.in_features = qtensor.shape

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `inputs (..., in) @ weight.T + bias` as (..., out)."""
        return self._kernel.linear(inputs, self._packed(), self.scheme, self.bias)


class QuantizedEmbedding(QuantizedLayer):
    """`nn.Embedding` with a quantized weight."""

    def __init__(self, qtensor: QTensor, dtype: torch.dtype) -> None:
        super().__init__(qtensor, dtype)
        self.num_embeddings, self.embedding_dim = qtensor.shape

    def forward(self, indices: Tensor) -> Tensor:
        """Return the rows at `indices` (...) as (..., width)."""
        return self._kernel.embedding(indices, self._packed(), self.scheme, self.dtype)
