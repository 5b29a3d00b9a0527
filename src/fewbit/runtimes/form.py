"""The form in which a layer stands in an ONNX file: decided once, for the writer, the prediction of bytes and the plan.

Q/DQ pairs or MatMulInteger where inputs are rounded; else weights alone, packed for com.microsoft operators or behind a
DequantizeLinear; or the type is another one, between Casts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from fewbit.formats.cast import Cast
from fewbit.formats.integer import Int
from fewbit.interfaces import QuantizedLayer
from fewbit.runtimes.runtime import Runtime
from fewbit.schemes.granularity import PerGroup

Form = Literal["QDQ", "dynamic", "MatMulNBits", "GatherBlockQuantized", "DequantizeLinear", "Cast"]

#: Operators with a packed form.
_PACKED: dict[str, Form] = {
    "MatMul": "MatMulNBits",
    "Gemm": "MatMulNBits",
    "Gather": "GatherBlockQuantized",
}
#: Numbers in a block of MatMulNBits where one scale holds for a whole row, and in the least block there is.
_USUAL, _LEAST = 128, 16


def form_of(quantized: QuantizedLayer, runtime: Runtime) -> Form:
    """Return how a layer is written for `runtime`.

    >>> from fewbit.interfaces import Layer
    >>> from fewbit.runtimes.ort_cpu import ORT_CPU
    >>> from fewbit.schemes.notation import parse_scheme
    >>> form_of(QuantizedLayer(Layer("fc", "linear", (8, 64), "MatMul"), parse_scheme("int4 g32")), ORT_CPU)
    'MatMulNBits'
    """
    if isinstance(quantized.scheme.format, Cast):
        return "Cast"
    if quantized.input is not None:
        return "QDQ" if quantized.input.static else "dynamic"
    packed = _PACKED.get(quantized.layer.operator)
    return packed if packed and packing_of(quantized, runtime) else "DequantizeLinear"


@dataclass(frozen=True, slots=True)
class Packing:
    """How the packed forms store a weight."""

    #: Of one code: 2, 4 or 8.
    bits: int
    #: Numbers of a row that share a scale, a power of two.
    block: int


def packing_of(quantized: QuantizedLayer, runtime: Runtime) -> Packing | None:
    """Return how the packed form of `runtime` stores a weight; `None`: it cannot.

    One scale for a row stands in MatMulNBits, whose blocks are short, beside each of its blocks.
    """
    form, granularity = quantized.scheme.format, quantized.scheme.granularity
    width = quantized.layer.shape[1]
    bits = [bits for bits in sorted(runtime.packed_bits) if isinstance(form, Int) and bits >= form.bits]
    block = 1 << (max(width, _LEAST) - 1).bit_length()
    if isinstance(granularity, PerGroup):
        block = granularity.size
    elif quantized.layer.kind != "embedding":
        block = min(block, _USUAL)
    if not bits or block < _LEAST or block & (block - 1):
        return None
    # Rows of a table are cut at whole bytes.
    return None if quantized.layer.kind == "embedding" and width * bits[0] % 8 else Packing(bits[0], block)
