"""The bounds of the boxes of a weight by the range method of a scheme, and the scales that follow from them."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

from fewbit.numerics.groups import box_axes, diagonal_blocks, split
from fewbit.numerics.namespace import Array, array_namespace, numbers_at_once, to_float32
from fewbit.ranges import OutputRange
from fewbit.ranges.fixed import Fixed
from fewbit.ranges.least_squares import LeastSquares
from fewbit.ranges.scale_levels import ScaleLevels
from fewbit.ranges.squared_error import SquaredError
from fewbit.schemes.scheme import Scheme


def row_slices(weight: Array, box: tuple[int, ...], *, cut_boxes: bool = False, times: int = 1) -> Iterator[slice]:
    """Yield runs of rows that hold whole boxes, or parts of the only box, and what fits a cache, or `times` that."""
    rows, *others = weight.shape
    step = 1 if cut_boxes and box[0] >= rows else box[0]
    at_once = max(1, times * numbers_at_once(weight) // max(1, prod(others) * step)) * step
    for start in range(0, rows, at_once):
        yield slice(start, min(start + at_once, rows))


def bounds_of(
    weight: Array, box: tuple[int, ...], scheme: Scheme, importance: Array | None, moment: Array | None
) -> tuple[Array, Array]:
    """Return the bounds of each box; an uneven last one is ranged on its own, without the zeros that fill it later."""
    for axis, (size, step) in enumerate(zip(weight.shape, box, strict=True)):
        even = size // step * step
        if 0 < even < size:
            ahead = (slice(None),) * axis
            parts = []
            for own in (slice(0, even), slice(even, size)):
                cut = (*ahead, own, ...)
                square = moment if moment is None or axis == 0 else moment[own, own]
                parts.append(
                    bounds_of(weight[cut], box, scheme, None if importance is None else importance[cut], square)
                )
            xp = array_namespace(weight)
            low, high = (xp.concat(list(pair), axis=2 * axis) for pair in zip(*parts, strict=True))
            return low, high
    box = tuple(min(size, step) for size, step in zip(weight.shape, box, strict=True))
    boxes = split(to_float32(weight), box)
    if moment is not None and isinstance(scheme.ranging, OutputRange):
        return scheme.ranging.for_inputs(boxes, scheme.grid, diagonal_blocks(moment, box[1]))
    weights = None if importance is None else split(importance, box)
    return scheme.ranging(boxes, box_axes(weight.ndim), scheme.grid, weights)


def group_scales(low: Array, high: Array, scheme: Scheme) -> Array:
    """Return the scales for bounds `low <= 0 <= high`, not yet as they are stored."""
    xp, scale = array_namespace(low), scheme.grid.scale(low, high)
    if scheme.scale_scheme is None:
        return scale
    # The scale 1 of an empty group must not stretch the range of the others.
    empty = 1.0 if scheme.scale_scheme.ranging == Fixed(1.0) else 0.0
    return xp.where(high - low > 0.0, scale, xp.zeros_like(scale) + empty)


def searched_levels(scheme: Scheme) -> ScaleLevels | None:
    """Return the levels among which scales are searched, where they are quantized and are to be searched."""
    method = scheme.ranging
    if scheme.scale_scheme is None or not scheme.symmetric or not isinstance(method, SquaredError | LeastSquares):
        return None
    return ScaleLevels(scheme.scale_scheme.format, method.smallest)
