"""Integer products on x86 processors by torch's FBGEMM: inputs of 8 bits, weights of 7, or of 8 where there is VNNI.

x @ w.T = s t (sum(code v) - z sum(v)) for x = s (code - z), w = t v. Without VNNI two products of 8-bit codes overflow
the 16 bits that AVX2 adds them in, and saturate.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbit.activation import Activation
from fewbit.kernels import Request, integer_products
from fewbit.kernels.dequantize import Dequantize, wants_gradient
from fewbit.kernels.purpose import Purpose
from fewbit.kernels.window import Window
from fewbit.qtensor import QTensor
from fewbit.schemes.granularity import PerToken

#: Engines of torch that pack a weight for it.
_ENGINES = ("x86", "fbgemm")
_PURPOSE = Purpose(
    device="cpu", dtypes=("float32",), rounds=True, needs="x86; weights of 8 bits need VNNI, of 7 bits do not"
)


@dataclass(frozen=True, slots=True)
class Prepared:
    """A weight for FBGEMM; `sums` are those of its dequantized rows."""

    packed: Any
    sums: Tensor
    zeros: Tensor
    #: As it is stored, for gradients.
    weight: QTensor


@dataclass(frozen=True, slots=True)
class Fbgemm:
    """Integer products of rounded inputs."""

    name: str = "fbgemm"
    purpose: Purpose = _PURPOSE

    def missing(self) -> str | None:
        """Return what the machine at hand lacks for it."""
        if "fbgemm" not in torch.backends.quantized.supported_engines:
            return "torch has no FBGEMM on this processor"
        if torch.backends.quantized.engine not in _ENGINES:
            return f"torch.backends.quantized.engine is {torch.backends.quantized.engine!r}; set it to 'x86'"
        return None

    def refusal(self, request: Request) -> str | None:
        """Return what stands against it."""
        return integer_products.refusal(request, lambda: not vnni())

    def prepare(self, qtensor: QTensor, window: Window | None = None) -> Prepared:  # noqa: ARG002
        """Return the weight packed, a copy."""
        scale = torch.broadcast_to(qtensor.scale_values().reshape(-1), qtensor.shape[:1])
        with warnings.catch_warnings():
            # torch means to drop its quantized tensors some day; the operator takes nothing else.
            warnings.filterwarnings("ignore", message=".*quantized tensor creation.*")
            weight = torch._make_per_channel_quantized_tensor(
                qtensor.codes.to(torch.int8), scale.double(), torch.zeros(len(scale), dtype=torch.long), 0
            )
            packed = torch.ops.quantized.linear_prepack(weight, None)
        sums = qtensor.codes.sum(dim=1, dtype=torch.float32) * scale
        return Prepared(packed, sums, torch.zeros_like(sums), qtensor)

    def apply(
        self, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `rounded(inputs) @ weight.T + bias`; in float32 but for the integer sums."""
        from fewbit.kernels import rows_compiled as compiled

        assert activation is not None  # `refusal` says so
        if wants_gradient(inputs, bias):
            return Dequantize().apply(inputs, prepared.weight, bias, activation)
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).contiguous()
        if not rows.numel():
            return inputs.new_empty(*inputs.shape[:-1], len(prepared.sums))
        codes, threads = torch.empty_like(rows), torch.get_num_threads()
        scale, zero, middle = _codes(rows.numpy(), codes.numpy(), activation, threads)
        sums = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(codes, 1.0, 128, prepared.packed)
        added = prepared.zeros if bias is None else bias.detach()
        parts = [sums.numpy(), scale, zero - middle]
        compiled.shared_out(compiled.to_outputs, threads, parts, prepared.sums.numpy(), added.numpy())
        outputs: Tensor = sums.reshape(*inputs.shape[:-1], -1)
        return outputs


def _codes(rows: Any, codes: Any, activation: Activation, threads: int) -> tuple[Any, Any, Any]:
    """Write the codes of `rows` (rows, in), less the middle; return scale and zero point (rows,), and the middle."""
    from fewbit.kernels import rows_compiled as compiled
    from fewbit.kernels.input_range import of_extremes, scale_and_zero

    scheme, count = activation.scheme, len(rows)
    own = compiled.CodeRange.of(scheme.grid.integer, symmetric=scheme.symmetric)
    scale, zero = np.empty(count, np.float32), np.zeros(count, np.float32)
    if of_extremes(activation) and isinstance(scheme.granularity, PerToken):
        compiled.shared_out(compiled.token_codes, threads, [rows, scale, zero, codes], own.numbers, own.symmetric)
        return scale, zero, own.numbers[2]
    scale[:], zero[:] = scale_and_zero(torch.from_numpy(rows), rows, activation, threads)
    compiled.shared_out(compiled.to_codes, threads, [rows, scale, zero, codes], own.numbers)
    return scale, zero, own.numbers[2]


def vnni() -> bool:
    """Whether the processor adds products of 8-bit numbers in 32 bits."""
    return bool(torch.cpu._is_vnni_supported())
