"""Fit group sizes to the widths of layers: a preset adapts, an explicit rule must divide.

A preset gets one group size for all its layers, the largest usual one that divides every width; a width that no usual
size divides is quantized per channel.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from fewbit.errors import GroupSizeError
from fewbit.interfaces import QuantizedLayer
from fewbit.schemes.gguf import FALLBACKS
from fewbit.schemes.granularity import PerChannel, PerGroup
from fewbit.schemes.scheme import Scheme

#: Group sizes that are tried, largest first.
USUAL_SIZES = (128, 64, 32, 16)


def adapt(quantized: Sequence[QuantizedLayer]) -> tuple[list[Scheme], list[str]]:
    """Return the schemes that the layers get instead, in order, and a sentence for each change."""
    wanted = sorted({size for layer in quantized if (size := _group_size(layer.scheme))})
    fitting = {size: _fitting(size, quantized) for size in wanted}
    schemes, sentences = [], [_shrunk(size, fitting[size], quantized) for size in wanted if fitting[size] != size]
    for layer in quantized:
        size, width = _group_size(layer.scheme), layer.layer.shape[1]
        if not size or width % size == 0 == fitting[size] - size:
            schemes.append(layer.scheme)
        elif width % fitting[size]:
            schemes.append(replace(layer.scheme, granularity=PerChannel()))
            sentences.append(f"{layer.layer.name}: no usual group size divides its width {width}, so per channel")
        else:
            schemes.append(replace(layer.scheme, granularity=PerGroup(fitting[size])))
    return schemes, sentences


def require_divisible(width: int, scheme: Scheme) -> None:
    """Raise `GroupSizeError` when the group size of `scheme` does not divide `width`.

    >>> from fewbit.schemes.notation import parse_scheme
    >>> require_divisible(576, parse_scheme("int4 g128"))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    fewbit.errors.GroupSizeError: in_features 576 is not a multiple of group size 128; use g64, or a preset...
    """
    if scheme.span is not None:
        _require_spans(width, scheme)
        return
    if not isinstance(scheme.granularity, PerGroup) or width % scheme.granularity.size == 0:
        return
    size = scheme.granularity.size
    divisor = next((s for s in USUAL_SIZES if s < size and width % s == 0), None)
    remedy = f"g{divisor}" if divisor else "channel"
    raise GroupSizeError(
        f"in_features {width} is not a multiple of group size {size}; use {remedy}, or a preset, which adapts"
    )


def _require_spans(width: int, scheme: Scheme) -> None:
    """Raise `GroupSizeError` when the spans of `scheme` do not divide `width`, naming a scheme whose spans do."""
    if width % (scheme.span or 1) == 0:
        return
    remedy = f"use {FALLBACKS[str(scheme)]}" if width % 32 == 0 and str(scheme) in FALLBACKS else "keep the layer float"
    raise GroupSizeError(f"in_features {width} is not a multiple of {scheme.span}, the span of {scheme}; {remedy}")


def _group_size(scheme: Scheme) -> int | None:
    """Return the group size that may be adapted; that of a span may not."""
    return scheme.granularity.size if isinstance(scheme.granularity, PerGroup) and scheme.span is None else None


def _same_size(size: int, quantized: Sequence[QuantizedLayer]) -> list[QuantizedLayer]:
    """Return the layers that ask for groups of `size` and whose width that or some usual size divides."""
    least = min(size, USUAL_SIZES[-1])
    return [q for q in quantized if _group_size(q.scheme) == size and q.layer.shape[1] % least == 0]


def _fitting(size: int, quantized: Sequence[QuantizedLayer]) -> int:
    """Return the largest of `size` and the usual sizes below it that divides all widths that any of them divides."""
    widths = [q.layer.shape[1] for q in _same_size(size, quantized)]
    sizes = [size, *(usual for usual in USUAL_SIZES if usual < size)]
    return next((fits for fits in sizes if all(width % fits == 0 for width in widths)), size)


def _shrunk(size: int, fitting: int, quantized: Sequence[QuantizedLayer]) -> str:
    same = _same_size(size, quantized)
    odd = next(q.layer for q in same if q.layer.shape[1] % size)
    return (
        f"group size {size} -> {fitting} for {len(same)} layers: {odd.name} has width {odd.shape[1]}, "
        f"which {size} does not divide"
    )
