"""What layouts for the integer weights of linear layers share: which layers they hold, and scales stored exactly."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fewbit.checkpoints.safetensors_file import numpy_type
from fewbit.errors import CheckpointError
from fewbit.formats.integer import Int
from fewbit.interfaces import QuantizedLayer
from fewbit.schemes.gguf import as_integers
from fewbit.schemes.granularity import PerChannel, PerGroup, PerTensor
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import ScaleType, Scheme

#: The word for a group that is a whole row.
WHOLE_ROW = -1


def problem_of(quantized: QuantizedLayer, name: str, bits: Collection[int], groups: Collection[int]) -> str | None:
    """Return why a layout called `name`, of integers with these `bits` and `groups`, cannot hold a layer, or `None`."""
    layer, scheme = quantized.layer, quantized.scheme
    if layer.module_class != "Linear":
        return f"{name} files hold Linear modules only, and this one is of class {layer.module_class}; keep it"
    for what, given in {"input": quantized.input, "output": quantized.output}.items():
        if given:
            return f"{name} files round no {what}, and here is '{input_scheme_to_text(given)}'; leave out `{what}`"
    if quantized.bias != "float":
        return f"{name} stores a bias as floats; leave out `bias`"
    number, plain = scheme.format, scheme.scale_scheme is None and not scheme.float_zero
    if not (isinstance(number, Int) and number.signed and number.bits in bits and plain):
        words = ", ".join(f"int{own}" for own in bits)
        return f"{name} has no layout for '{scheme}'; use {words}, with float scales and whole zero points"
    if group_size(scheme) not in groups:
        sizes = ", ".join("channel" if own == WHOLE_ROW else f"g{own}" for own in groups)
        return f"runtimes load {name} weights by {sizes}, not '{scheme}'; use one of these"
    return None


def held_as(quantized: QuantizedLayer, bits: Sequence[int], groups: Sequence[int]) -> QuantizedLayer:
    """Return the layer in integers and groups that hold the levels of its own, where there are such."""
    scheme, width = as_integers(quantized.scheme), quantized.layer.shape[1]
    if not isinstance(scheme.format, Int):
        return quantized
    number = Int(next((own for own in bits if own >= scheme.format.bits), scheme.format.bits))
    symmetric = scheme.symmetric and (scheme.format.signed or number.bits > scheme.format.bits)
    size = group_size(scheme)
    if scheme.granularity == PerTensor():
        size = WHOLE_ROW
    if size is not None and size not in groups:
        fits = [own for own in groups if own > 0 and (width if size == WHOLE_ROW else size) % own == 0]
        size = max(fits, default=size)
    granularity = scheme.granularity if size is None else granularity_of(size)
    own = replace(scheme, format=number, symmetric=symmetric, granularity=granularity, range_method=None)
    return replace(quantized, scheme=own)


def nearest(quantized: QuantizedLayer, bits: Sequence[int], groups: Sequence[int]) -> QuantizedLayer:
    """Return the layer in the nearest integers and groups, its input and output in float."""
    scheme, width = quantized.scheme, quantized.layer.shape[1]
    wanted = next((own for own in bits if own >= scheme.format.bits), max(bits))
    size = scheme.granularity.box(quantized.layer.shape)[1]
    fits = [own for own in groups if own > 0 and width % own == 0]
    size = max((own for own in fits if own <= size), default=min(fits, default=WHOLE_ROW))
    if WHOLE_ROW in groups and scheme.granularity in (PerTensor(), PerChannel()):
        size = WHOLE_ROW
    own = Scheme(
        format=Int(wanted), granularity=granularity_of(size), symmetric=scheme.symmetric, scale_type=scheme.scale_type
    )
    return replace(quantized, scheme=own, input=None, output=None, bias="float")


def group_size(scheme: Scheme) -> int | None:
    """Return how many columns share a scale, -1 for whole rows; `None`: it is no group of a row."""
    if isinstance(scheme.granularity, PerGroup):
        return scheme.granularity.size
    return WHOLE_ROW if scheme.granularity == PerChannel() else None


def granularity_of(size: int) -> PerChannel | PerGroup:
    """Undo `group_size`."""
    return PerChannel() if size == WHOLE_ROW else PerGroup(size)


def stored_scales(name: str, scale: np.ndarray[Any, Any], scale_type: ScaleType) -> np.ndarray[Any, Any]:
    """Return float32 scales in `scale_type`; raise `CheckpointError` unless it holds each exactly."""
    with np.errstate(over="ignore"):
        stored = scale.astype(numpy_type(scale_type))
    off = int((stored.astype(np.float32) != scale).sum())
    if off:
        raise CheckpointError(
            f"{name}: {scale_type} does not hold {off} of {scale.size} scales exactly (the least is "
            f"{np.abs(scale).min():.3g}); keep the layer, or write compressed-tensors with dtype='float32'"
        )
    return stored


def require_finite(scale: np.ndarray[Any, Any]) -> None:
    """Raise `CheckpointError` for scales that are no numbers; negative ones mirror the levels and are in order."""
    bad = int((~np.isfinite(scale)).sum())
    if bad:
        raise CheckpointError(f"{bad} of {scale.size} scales are NaN or infinite; the file is damaged")
