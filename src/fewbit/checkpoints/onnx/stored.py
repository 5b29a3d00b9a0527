"""What stands in an ONNX file for a quantized weight, known before it is written: for the bytes of a plan.

Without biases, and without scale and zero point of each value that is rounded: five bytes.
"""

from __future__ import annotations

from math import prod

from fewbit.formats.cast import Cast
from fewbit.formats.integer import Int
from fewbit.interfaces import QuantizedLayer, StoredTensor
from fewbit.numerics.packing import packed_length
from fewbit.qtensor import scale_shape
from fewbit.runtimes.form import form_of, packing_of
from fewbit.runtimes.runtime import Runtime
from fewbit.schemes.scheme import ScaleType


def stored_tensors(quantized: QuantizedLayer, runtime: Runtime, storage_type: ScaleType) -> tuple[StoredTensor, ...]:
    """Return codes, scales and zero points of a layer, in a model of floats of `storage_type`."""
    form = form_of(quantized, runtime)
    if form in ("MatMulNBits", "GatherBlockQuantized"):
        return _packed(quantized, runtime, storage_type)
    name, scheme, shape = quantized.layer.name, quantized.scheme, quantized.layer.shape
    if isinstance(scheme.format, Cast):
        return (StoredTensor(f"{name}.weight", scheme.format.dtype, shape),)
    scales = scale_shape(shape, scheme)
    whole = isinstance(scheme.format, Int)
    bits = 4 if whole and scheme.format.bits <= 4 and (form == "DequantizeLinear" or scales[1] > 1) else 8
    parts = [
        StoredTensor(f"{name}.codes", "uint8", (packed_length(prod(shape), bits),)),
        StoredTensor(f"{name}.scale", "float32" if form == "dynamic" else storage_type, scales),
    ]
    if form != "dynamic" and (not scheme.symmetric or (whole and scales[1] == 1)):
        parts.append(StoredTensor(f"{name}.zero_point", "uint8", (packed_length(prod(scales), bits),)))
    return tuple(parts)


def _packed(quantized: QuantizedLayer, runtime: Runtime, storage_type: ScaleType) -> tuple[StoredTensor, ...]:
    """Return the parts of MatMulNBits, which has whole blocks, or of GatherBlockQuantized, whose rows just end."""
    packing = packing_of(quantized, runtime)
    assert packing is not None  # form_of asked before
    name, (out, width) = quantized.layer.name, quantized.layer.shape
    blocks = -(-width // packing.block)
    length = width if quantized.layer.kind == "embedding" else blocks * packing.block
    parts = [
        StoredTensor(f"{name}.codes", "uint8", (out, packed_length(length, packing.bits))),
        StoredTensor(f"{name}.scale", storage_type, (out, blocks)),
    ]
    form = quantized.scheme.format
    if not quantized.scheme.symmetric or (isinstance(form, Int) and not form.signed):
        parts.append(StoredTensor(f"{name}.zero_point", "uint8", (out, packed_length(blocks, packing.bits))))
    return tuple(parts)
