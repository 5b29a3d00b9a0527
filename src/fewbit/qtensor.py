"""QTensor: the codes of a quantized tensor with what is needed to read them, and `quantize`, which makes one.

dequantize() = (decode(codes) - zero_point) * scale, or codes * scale + minimum, these spread over their groups. Scale
and minimum may be QTensors themselves: NVFP4, MXFP4, double-quantized NF4, Q4_K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

from fewbit import spans
from fewbit.box_bounds import bounds_of, group_scales, row_slices, searched_levels
from fewbit.codebooks import entries, learned
from fewbit.errors import SchemeError
from fewbit.formats.learned import Learned
from fewbit.formats.minifloat import Float
from fewbit.formats.scale_type import round_scale
from fewbit.numerics.groups import beside_boxes, box_axes, counts, merge, split, spread
from fewbit.numerics.namespace import (
    Array,
    array_namespace,
    constants_like,
    settled,
    stop_gradient,
    to_float32,
)
from fewbit.numerics.noise import uniform
from fewbit.numerics.rounding import flushed, passed
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.compiled_floats import are_compiled, encode
from fewbit.ranges.scale_levels import ScaleLevels
from fewbit.schemes.scheme import Scheme

#: What most often is a compiled loop holds little beside its numbers, so that it may take more of them at a time.
_COMPILED_TIMES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class QTensor:
    """A quantized tensor of shape (out, in).

    `scale.shape == counts(codes.shape, scheme.granularity.box(codes.shape))`, likewise `zero_point`.
    """

    #: int8 or uint8, of 16 bits where the format has more than 8, in the shape of the original.
    codes: Array
    #: float32 values, each exact in `scheme.scale_type` (or normal in float32 only, see `quantize`), or a QTensor. That
    #: of a cast is 1 and never stored.
    scale: Array | QTensor
    #: Codes that stand for 0, of the type of `codes`; float32 when they may lie between codes; `None` when symmetric.
    zero_point: Array | None
    #: How the codes came about.
    scheme: Scheme
    #: Levels of each output where they are learned, float32 (out, levels), ascending and exact in `scheme.scale_type`.
    codebook: Array | None = None
    #: What the code 0 stands for where that is a float, in the shape and the form of `scale`; else `None`.
    minimum: Array | QTensor | None = None

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the original."""
        return tuple(self.codes.shape)

    def scale_values(self) -> Array:
        """Return the scales as float32, dequantized where they are quantized themselves."""
        return self.scale.dequantize() if isinstance(self.scale, QTensor) else self.scale

    def minimum_values(self) -> Array | None:
        """Return the minima as float32, dequantized where they are quantized themselves; `None`: there are none."""
        return self.minimum.dequantize() if isinstance(self.minimum, QTensor) else self.minimum

    def dequantize(self) -> Array:
        """Return the float32 values that the codes stand for."""
        if not self.scheme.scaled:
            return self.scheme.format.decode(self.codes)
        box = self.scheme.granularity.box(self.shape)
        table = self.codebook
        whole = self.scheme.format.decode(self.codes) if table is None else entries(self.codes, table)
        values = split(whole, box)
        if self.zero_point is not None:
            values = values - array_namespace(values).astype(beside_boxes(self.zero_point), values.dtype)
        values, minimum = values * beside_boxes(self.scale_values()), self.minimum_values()
        return merge(values if minimum is None else settled(values) + beside_boxes(minimum), self.shape)

    def map(self, function: Callable[[Array], Array]) -> QTensor:
        """Return a copy with `function` applied to every array (to move between devices or frameworks)."""

        def moved(part: Array | QTensor | None) -> Any:
            return None if part is None else part.map(function) if isinstance(part, QTensor) else function(part)

        return replace(
            self,
            codes=function(self.codes),
            scale=moved(self.scale),
            zero_point=moved(self.zero_point),
            codebook=moved(self.codebook),
            minimum=moved(self.minimum),
        )


def quantize(
    weight: Array,
    scheme: Scheme,
    importance: Array | None = None,
    seed: int | None = None,
    moment: Array | None = None,
) -> QTensor:
    """Return `weight` rounded to the nearest level of `scheme`; groups lie along the last axis.

    The scale is rounded to `scheme.scale_type` (`None`: float32, unrounded) before codes are computed with it. One
    that would be subnormal there keeps its float32 value. `weight` must be finite: callers check, since numerics
    cannot raise under jit. `importance`, of the shape of `weight` or of its last axis, weights squared errors in range
    methods that search (second moments of the inputs, for example). `moment` (in, in), the whole second moment of the
    inputs of a matrix (out, in), is for range methods that look at the output. With a `seed` rounding is stochastic:
    right on average, and the same in every framework. Works on what fits a cache at a time.

    >>> import numpy as np
    >>> from fewbit.schemes.notation import parse_scheme
    >>> quantize(np.asarray([[0.0, 7.5, -7.5, 3.2]]), parse_scheme("int4 channel")).codes.tolist()
    [[0, 7, -8, 3]]
    """
    shape = tuple(weight.shape)
    box = scheme.granularity.box(shape)
    if scheme.span is not None:
        _require_nearest(shape, scheme, seed)
        return of_spans(spans.searched(weight, scheme, importance), scheme)
    if isinstance(scheme.format, Learned):
        _require_learnable(shape, scheme, seed)
        codes, scale, table = learned(weight, scheme.format, box, scheme.scale_type, importance)
        return QTensor(codes=codes, scale=scale, zero_point=None, scheme=scheme, codebook=table)
    scale, stored, zero = _parameters(weight, scheme, importance, moment)
    codes = [
        _codes(weight[rows, ...], rows, box, (scale, zero), scheme, seed)
        for rows in row_slices(weight, box, cut_boxes=True)
    ]
    xp = array_namespace(weight)
    return QTensor(
        codes=xp.concat(codes, axis=0) if len(codes) > 1 else codes[0],
        scale=stored,
        zero_point=None if zero is None else _stored_zero_point(xp.reshape(zero, counts(shape, box)), scheme),
        scheme=scheme,
    )


def fake_quantize(weight: Array, scheme: Scheme, importance: Array | None = None, seed: int | None = None) -> Array:
    """Return `quantize(weight, scheme, importance, seed).dequantize()`, differentiable: for training.

    Gradients pass straight through the rounding, and not at all through the choice of scale and zero point.
    """
    shape = tuple(weight.shape)
    box = scheme.granularity.box(shape)
    if scheme.span is not None:
        fixed = quantize(stop_gradient(weight), scheme, importance, seed).dequantize()
        return passed(weight, fixed)
    if scheme.learned:
        raise SchemeError(
            f"{scheme.format.name} is not for training: its levels are learned once, by fewbit.qtensor.quantize"
        )
    scale, _, zero = _parameters(stop_gradient(weight), scheme, importance)
    noise = None if seed is None else split(uniform(shape, seed, weight), box)
    return merge(scheme.grid.rounded(split(flushed(weight), box), scale, zero, noise), shape)


def _require_learnable(shape: tuple[int, ...], scheme: Scheme, seed: int | None) -> None:
    if len(shape) != 2 or not prod(shape):
        raise SchemeError(
            f"{scheme.format.name} learns levels for the rows of a weight (out, in), not of shape {shape}"
        )
    if seed is not None:
        raise SchemeError(f"{scheme.format.name} rounds to nearest only; leave out the seed")


def of_spans(found: spans.Spans, scheme: Scheme) -> QTensor:
    """Return what a search of spans found as a QTensor."""
    inner = scheme.scale_scheme

    def nested(values: Array | None, unit: Array | None) -> Array | QTensor | None:
        if inner is None or values is None:
            return values
        return QTensor(codes=values, scale=unit, zero_point=None, scheme=inner)

    return QTensor(
        codes=found.codes,
        scale=nested(found.scale, found.unit),
        zero_point=None,
        scheme=scheme,
        minimum=nested(found.minimum, found.minimum_unit),
    )


def _require_nearest(shape: tuple[int, ...], scheme: Scheme, seed: int | None) -> None:
    if not prod(shape):
        raise SchemeError(f"a tensor of shape {shape} holds no numbers to quantize; keep it")
    if seed is not None:
        raise SchemeError(f"{scheme} rounds to nearest only; leave out the seed")


def scale_shape(shape: tuple[int, ...], scheme: Scheme) -> tuple[int, ...]:
    """Return the shape of the scale of a tensor of `shape`."""
    return counts(shape, scheme.granularity.box(shape))


def unit_scale(shape: tuple[int, ...], like: Array) -> Array:
    """Return the scale of a cast of a tensor of `shape`, in the framework and on the device of `like`."""
    return array_namespace(like).reshape(constants_like([1.0], "float32", like), (1,) * len(shape))


def _parameters(
    weight: Array, scheme: Scheme, importance: Array | None, moment: Array | None = None
) -> tuple[Array, Array | QTensor, Array | None]:
    """Return the final scale and the zero point, ready to broadcast to boxes; between them, what is stored."""
    xp = array_namespace(weight)
    shape = tuple(weight.shape)
    if not prod(shape):
        raise SchemeError(f"a tensor of shape {shape} holds no numbers to quantize; keep it")
    box = scheme.granularity.box(shape)
    if not scheme.scaled:
        one = unit_scale(shape, weight)
        return beside_boxes(one), one, None
    if importance is not None:
        importance = xp.broadcast_to(xp.astype(importance, xp.float32), shape)
    levels = searched_levels(scheme)
    ranged = scheme if levels is None else replace(scheme, range_method=AbsMax())
    bounds = [
        bounds_of(weight[rows, ...], box, ranged, None if importance is None else importance[rows, ...], moment)
        for rows in row_slices(weight, box)
    ]
    low, high = (xp.concat(list(parts), axis=0) if len(bounds) > 1 else parts[0] for parts in zip(*bounds, strict=True))
    wanted = group_scales(low, high, scheme)
    scale, stored = _settled(wanted, scheme, counts(shape, box))
    if levels is not None and isinstance(stored, QTensor):
        scale, stored = _at_best_levels(weight, importance, scheme, levels, (wanted, stored))
    return scale, stored, scheme.grid.zero_point(low, scale)


def _at_best_levels(
    weight: Array, importance: Array | None, scheme: Scheme, levels: ScaleLevels, found: tuple[Array, QTensor]
) -> tuple[Array, QTensor]:
    """Return the scales at the levels of least error, ready to broadcast, and as they are stored.

    `found` are the scales that clip nothing, and what is stored of them; its own scale, that of the levels, stays.
    """
    xp, (wanted, stored) = array_namespace(weight), found
    box = scheme.granularity.box(tuple(weight.shape))
    inner = stored.scheme.granularity.box(stored.shape)
    unit = beside_boxes(spread(stored.scale_values(), stored.shape, inner))
    uneven = any(size % step for size, step in zip(weight.shape, box, strict=True))
    codes = []
    for rows in row_slices(weight, box, times=_COMPILED_TIMES):
        own = slice(rows.start // box[0], -(-rows.stop // box[0]))
        boxes = split(to_float32(weight[rows, ...]), box)
        # What fills an uneven last box counts nothing.
        counted = importance[rows, ...] if importance is not None else xp.ones_like(weight[rows, ...])
        weights = split(xp.astype(counted, xp.float32), box) if uneven or importance is not None else None
        axes = box_axes(weight.ndim)
        codes.append(levels(boxes, axes, scheme.grid, weights, wanted[own, ...], unit[own, ...])[1])
    stored = replace(stored, codes=xp.reshape(xp.concat(codes, axis=0), stored.shape))
    return xp.reshape(stored.dequantize(), wanted.shape), stored


def _stored_zero_point(zero: Array, scheme: Scheme) -> Array:
    return zero if scheme.float_zero else scheme.grid.integer.to_codes(zero)


def _settled(scale: Array, scheme: Scheme, shape: tuple[int, ...]) -> tuple[Array, Array | QTensor]:
    """Return the final scale in the shape of `scale`, and what is stored of it in `shape`."""
    xp = array_namespace(scale)
    if scheme.scale_scheme is None:
        rounded = round_scale(scale, scheme.scale_type)
        return rounded, xp.reshape(rounded, shape)
    stored = quantize(xp.reshape(scale, shape), scheme.scale_scheme)
    stored = replace(stored, codes=ScaleLevels(scheme.scale_scheme.format).positive(stored.codes))
    return xp.reshape(stored.dequantize(), scale.shape), stored


def _codes(
    weight: Array,
    rows: slice,
    box: tuple[int, ...],
    parameters: tuple[Array, Array | None],
    scheme: Scheme,
    seed: int | None,
) -> Array:
    """Return the codes of `weight`, which holds some `rows`; `parameters` are those of the whole tensor."""
    shape = tuple(weight.shape)
    own = slice(rows.start // box[0], -(-rows.stop // box[0]))
    scale, zero = (None if part is None else part[own, ...] for part in parameters)
    piece = (min(box[0], shape[0]), *box[1:])
    noise = None if seed is None else split(uniform(shape, seed, weight, rows.start * prod(shape[1:])), piece)
    if noise is None and isinstance(scheme.format, Float):
        xp = array_namespace(weight)
        boxes = split(xp.astype(weight, xp.float32, copy=False), piece)
        if are_compiled(boxes, scheme.format):
            return merge(encode(boxes, scale, scheme.format), shape)
    return merge(scheme.grid.codes(split(to_float32(weight), piece), scale, zero, noise), shape)
