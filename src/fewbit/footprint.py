"""What a quantized layer takes when it is stored, by checkpoint format or in a state_dict; from shapes alone."""

from __future__ import annotations

from fewbit.formats.learned import Learned
from fewbit.interfaces import QuantizedLayer, StoredTensor, Target
from fewbit.numerics.packing import packed_length
from fewbit.qtensor import scale_shape
from fewbit.schemes.scheme import ScaleType, Scheme


def quantized_tensors(
    quantized: QuantizedLayer, storage_type: ScaleType, target: Target | None
) -> tuple[StoredTensor, ...]:
    """Return what `target` stores for a quantized layer, or without one what a state_dict holds for it."""
    if target:
        return target.tensors(quantized, storage_type)
    weight = _canonical_tensors(quantized.layer.shape, quantized.scheme)
    bias = StoredTensor("bias_codes", "int32", quantized.layer.shape[:1])
    return weight if quantized.bias == "float" else (*weight, bias)


def levels_noted(quantized: QuantizedLayer) -> list[str]:
    """Return a note for layers whose learned levels take bits that the name of their scheme does not tell."""
    if not quantized.scheme.learned:
        return []
    return [f"{quantized.scheme.bits_per_weight(quantized.layer.shape):.2f} bits a weight with its levels"]


def _canonical_tensors(shape: tuple[int, ...], scheme: Scheme) -> tuple[StoredTensor, ...]:
    """Return the parts that a state_dict holds for a weight of `shape`."""
    scales = scale_shape(shape, scheme)
    codes = StoredTensor("codes", "uint8", (*shape[:-1], packed_length(shape[-1], scheme.format.bits)))
    if not scheme.scaled:
        return (codes,)
    if scheme.scale_scheme is not None:
        stored = (codes, *_canonical_tensors(scales, scheme.scale_scheme))
    else:
        stored = (codes, StoredTensor("scale", scheme.scale_type or "float32", scales))
    if isinstance(scheme.format, Learned):
        table = StoredTensor("codebook", scheme.scale_type or "float32", (shape[0], scheme.format.count))
        stored = (*stored, table)
    if scheme.minimum:
        return (*stored, *stored[1:])  # minima are stored as scales are
    return stored if scheme.symmetric else (*stored, StoredTensor("zero_point", "int8", scales))
