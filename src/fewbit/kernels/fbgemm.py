"""Integer products on x86 processors by torch's FBGEMM: inputs of 8 bits, weights of 7, or of 8 where there is VNNI.

x @ w.T = s t (sum(code v) - z sum(v)) for x = s (code - z), w = t v. Without VNNI two products of 8-bit codes overflow
the 16 bits that AVX2 adds them in, and saturate: 255 * 64 * 2 < 2^15 does not.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fewbit.activation import Activation
from fewbit.formats.integer import Int
from fewbit.kernels import Request
from fewbit.kernels.dequantize import Dequantize, wants_gradient
from fewbit.numerics.namespace import to_numpy
from fewbit.qtensor import QTensor, quantize
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.minmax import MinMax
from fewbit.schemes.granularity import PerChannel, PerTensor, PerToken
from fewbit.schemes.scheme import Scheme

#: Engines of torch that pack a weight for it.
_ENGINES = ("x86", "fbgemm")
#: The largest magnitude of a weight's code where pairs of products are added in 16 bits.
_LARGEST = 64


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
    rounds: bool = True
    fast: bool = True

    def refusal(self, request: Request) -> str | None:
        """Return what stands against it."""
        if request.input is None:
            return "inputs are not rounded"
        return _missing(request) or _weight_refusal(request.weight) or _input_refusal(request.input)

    def prepare(self, qtensor: QTensor) -> Prepared:
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

    def linear(
        self, inputs: Tensor, prepared: Prepared, bias: Tensor | None, activation: Activation | None = None
    ) -> Tensor:
        """Return `rounded(inputs) @ weight.T + bias`; in float32 but for the integer sums."""
        from fewbit.kernels import rows_compiled as compiled

        assert activation is not None  # `refusal` says so
        if wants_gradient(inputs, bias):
            return Dequantize().linear(inputs, prepared.weight, bias, activation)
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).contiguous()
        if not rows.numel():
            return inputs.new_empty(*inputs.shape[:-1], len(prepared.sums))
        codes, threads = torch.empty_like(rows), torch.get_num_threads()
        scale, zero, numbers = _codes(rows.numpy(), codes.numpy(), activation, threads)
        sums = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32(codes, 1.0, 128, prepared.packed)
        added = prepared.zeros if bias is None else bias.detach()
        parts = [sums.numpy(), scale, zero]
        compiled.shared_out(compiled.to_outputs, threads, parts, prepared.sums.numpy(), added.numpy(), numbers)
        outputs: Tensor = sums.reshape(*inputs.shape[:-1], -1)
        return outputs


def _codes(rows: Any, codes: Any, activation: Activation, threads: int) -> tuple[Any, Any, Any]:
    """Write the codes of `rows` (rows, in) and return scale and zero point (rows,), and the numbers of the range."""
    from fewbit.kernels import rows_compiled as compiled

    scheme, count = activation.scheme, len(rows)
    own = compiled.CodeRange.of(scheme.grid.integer, symmetric=scheme.symmetric)
    scale, zero = np.empty(count, np.float32), np.zeros(count, np.float32)
    plain = activation.scale is None and isinstance(scheme.ranging, (AbsMax, MinMax))
    if plain and isinstance(scheme.granularity, PerToken):
        compiled.shared_out(compiled.token_codes, threads, [rows, scale, zero, codes], own.numbers, own.symmetric)
        return scale, zero, own.numbers
    if plain:
        compiled.shared_out(compiled.extremes, threads, [rows, scale, zero])
        low, high = scale.min(keepdims=True), zero.max(keepdims=True)  # NaN comes through
        one = np.empty(1, np.float32), np.empty(1, np.float32)
        compiled.parameters(low, high, *one, own.numbers, own.symmetric)
        scale[:], zero[:] = one
    else:
        # Any other range method, or numbers that calibration has fixed.
        found = quantize(torch.from_numpy(rows), scheme) if activation.scale is None else activation
        scale[:] = to_numpy(_values(found)).reshape(-1)
        if found.zero_point is not None:
            zero[:] = to_numpy(found.zero_point).reshape(-1)
    compiled.shared_out(compiled.to_codes, threads, [rows, scale, zero, codes], own.numbers)
    return scale, zero, own.numbers


def _values(found: QTensor | Activation) -> Any:
    return found.scale_values() if isinstance(found, QTensor) else found.scale


def _missing(request: Request) -> str | None:
    if request.device != "cpu":
        return f"it runs on the CPU, not on {request.device}"
    if request.dtype != "float32":
        return f"it returns float32, not {request.dtype}"
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        return "torch has no FBGEMM on this processor"
    if torch.backends.quantized.engine not in _ENGINES:
        return f"torch.backends.quantized.engine is {torch.backends.quantized.engine!r}; set it to 'x86'"
    return None


def _weight_refusal(scheme: Scheme) -> str | None:
    number_format = scheme.format
    if not isinstance(number_format, Int) or not number_format.signed or number_format.bits > 8 or not scheme.symmetric:
        return f"its weights are symmetric integers of 8 bits at most, not {scheme}"
    if scheme.granularity not in (PerChannel(), PerTensor()) or scheme.scale_scheme is not None:
        return f"its weights have a scale a channel or tensor, not '{scheme.granularity.name}'"
    if -number_format.qmin > _LARGEST and not vnni():
        return (
            f"products of {number_format.bits}-bit weights saturate without VNNI, which this processor lacks; "
            f"weight = 'int7 {scheme.granularity.name}' does not"
        )
    return None


def _input_refusal(scheme: Scheme) -> str | None:
    number_format = scheme.format
    if not isinstance(number_format, Int) or number_format.bits > 8 or scheme.float_zero:
        return f"its inputs are integers of 8 bits at most, not {scheme}"
    if scheme.scale_scheme is not None or scheme.scale_type not in (None, "float32"):
        return f"its inputs have float32 scales, not those of {scheme}"
    if scheme.granularity not in (PerToken(), PerTensor()):
        return f"its inputs have a scale a token or tensor, not '{scheme.granularity.name}'"
    return None


def vnni() -> bool:
    """Whether the processor adds products of 8-bit numbers in 32 bits."""
    return bool(torch.cpu._is_vnni_supported())
