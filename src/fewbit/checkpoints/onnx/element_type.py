"""Number formats as the element types of ONNX tensors, and the opset from which Q/DQ take each.

int4, uint4 and 16 bits: 21; float8: 19; a scale for each index of an axis: 13. Source: ONNX operator schemas, 1.23.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.formats.integer import Int
from fewbit.formats.minifloat import E4M3, E4M3FNUZ, E5M2, E5M2FNUZ, Float
from fewbit.formats.number_format import NumberFormat

#: Opset from which DequantizeLinear takes blocks.
BLOCKS = 21
#: Opset from which it takes an axis, and the least that is written.
AXIS = 13
#: Opset from which scales may be float16 or bfloat16.
HALF_SCALES = 19
#: Opset from which all products take each type of 16 bits; of bfloat16 it is Conv that came last.
CASTS = {"float16": AXIS, "bfloat16": 22}

_FLOATS: dict[Float, ir.DataType] = {
    E4M3: ir.DataType.FLOAT8E4M3FN,
    E4M3FNUZ: ir.DataType.FLOAT8E4M3FNUZ,
    E5M2: ir.DataType.FLOAT8E5M2,
    E5M2FNUZ: ir.DataType.FLOAT8E5M2FNUZ,
}


@dataclass(frozen=True, slots=True)
class ElementType:
    """What codes are stored in."""

    dtype: ir.DataType
    #: Opset from which Q/DQ take it.
    opset: int
    #: Added to codes of the number format: 128 where int8 is stored as uint8.
    shift: int = 0

    def stored(self, codes: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """Return codes of the number format, or whole numbers in float32 that stand for some, in this type."""
        if self.dtype in _FLOATS.values():
            return np.asarray(codes, order="C").view(self.dtype.numpy())
        shifted = np.asarray(codes, np.int32) + self.shift
        return shifted.astype(self.dtype.numpy(), order="C")


def element_type(form: NumberFormat, *, unsigned: bool = False, whole_bytes: bool = True) -> ElementType:
    """Return the element type for codes of `form`.

    With `unsigned` int8 becomes uint8; without `whole_bytes` up to 4 bits take half a byte.
    """
    if isinstance(form, Float):
        return ElementType(_FLOATS[form], 19)
    assert isinstance(form, Int)  # Runtime.problem refuses the rest
    if form.bits <= 4 and not whole_bytes:
        return ElementType(ir.DataType.INT4 if form.signed else ir.DataType.UINT4, 21)
    if form.bits == 16:
        return ElementType(ir.DataType.INT16 if form.signed else ir.DataType.UINT16, 21)
    if form.signed and not unsigned:
        return ElementType(ir.DataType.INT8, 10)
    return ElementType(ir.DataType.UINT8, 10, 128 if form.signed else 0)
