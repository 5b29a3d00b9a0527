"""The grid that a range will be used for: from bounds to scale and zero point, and the error that they leave.

Range methods that search ask it for the squared error of trial bounds; `quantize` asks it for the parameters it uses.
Both go through the same arithmetic, so the error searched is the error made.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

from fewbit.formats.integer import Int
from fewbit.formats.number_format import NumberFormat
from fewbit.formats.scale_type import ScaleType, round_scale, round_zero_point
from fewbit.numerics import affine
from fewbit.numerics.namespace import SMALLEST_NORMAL, Array, array_namespace, numbers_at_once, settled, stop_gradient
from fewbit.numerics.rounding import straight_through
from fewbit.numerics.summation import tree_sum


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """Levels of a number format under scales of a type.

    Boxes have shape (n0, b0, n1, b1, ...), see `fewbit.numerics.groups`; bounds, scales and errors keep the inner axes
    as 1, so that everything broadcasts.
    """

    format: NumberFormat
    symmetric: bool = True
    float_zero: bool = False
    scale_type: ScaleType | None = None

    def scale(self, low: Array, high: Array) -> Array:
        """Return the scale for bounds `low <= 0 <= high`, not yet rounded to its type."""
        if self.symmetric:
            scale = affine.symmetric_scale(larger(-low, high), self.format.reach)
            # Of integers the table of levels is a cache, which torch's compiler warns of.
            if isinstance(self.format, Int) or 0.0 in self.format.levels:
                return scale
            # Signs have no 0: a group of zeros gets the least scale, not 1.
            xp = array_namespace(scale)
            return xp.where(high - low > 0.0, scale, xp.zeros_like(scale) + SMALLEST_NORMAL)
        return affine.asymmetric_scale(low, high, self.integer.qmax - self.integer.qmin)

    def zero_point(self, low: Array, scale: Array) -> Array | None:
        """Return the zero point as a float, or `None` when symmetric, for a scale that is final."""
        if self.symmetric:
            return None
        limits = self.integer.qmin, self.integer.qmax
        if self.float_zero:
            return round_zero_point(affine.float_zero_point(low, scale, *limits), self.scale_type)
        return affine.zero_point(low, scale, *limits)

    def parameters(self, low: Array, high: Array) -> tuple[Array, Array | None]:
        """Return the scale rounded to its type, and the zero point."""
        scale = round_scale(self.scale(low, high), self.scale_type)
        return scale, self.zero_point(low, scale)

    def codes(self, boxes: Array, scale: Array, zero: Array | None, noise: Array | None = None) -> Array:
        """Return the codes of `boxes`, to nearest or by `noise`."""
        if zero is None:
            return self.format.encode(boxes * (1.0 / scale), noise)
        return self.integer.to_codes(self._shifted(boxes, scale, zero, noise))

    def units(self, boxes: Array, scale: Array, zero: Array | None, noise: Array | None = None) -> Array:
        """Return what the codes of `boxes` stand for in units of the scale: `code - zero point`, or a level.

        Differentiable by straight-through, as `NumberFormat.round`.
        """
        if zero is None:
            return self.format.round(boxes * (1.0 / scale), noise)
        rounded = self._shifted(stop_gradient(boxes), scale, zero, noise) - zero
        low, high = self.integer.qmin - 0.5 - zero, self.integer.qmax + 0.5 - zero
        return straight_through(boxes * (1.0 / scale), rounded, low, high)

    def rounded(self, boxes: Array, scale: Array, zero: Array | None, noise: Array | None = None) -> Array:
        """Return the float32 values that the codes of `boxes` stand for."""
        return self.units(boxes, scale, zero, noise) * scale

    def _shifted(self, boxes: Array, scale: Array, zero: Array, noise: Array | None) -> Array:
        encode = affine.encode_around_float_zero if self.float_zero else affine.encode
        return encode(boxes, scale, zero, (self.integer.qmin, self.integer.qmax), noise)

    def error(self, boxes: Array, low: Array, high: Array, axes: tuple[int, ...], weights: Array | None) -> Array:
        """Return the squared error, summed over `axes` and weighted by `weights`, that bounds leave."""
        return self.error_under(self.parameters(low, high), boxes, axes, weights)

    def error_under(
        self, parameters: tuple[Array, Array | None], boxes: Array, axes: tuple[int, ...], weights: Array | None
    ) -> Array:
        """Return the same for a scale, as it is stored, and its zero point."""
        scale, zero = parameters
        parts = [self._error(part, scale, zero, axes, own) for part, own in pieces(boxes, axes, weights)]
        return sum(parts[1:], start=parts[0])

    def _error(self, boxes: Array, scale: Array, zero: Array | None, axes: tuple[int, ...], weights: Any) -> Array:
        difference = settled(self.rounded(boxes, scale, zero)) - boxes
        squared = difference * difference
        return tree_sum(squared if weights is None else squared * weights, axes)

    @property
    def integer(self) -> Int:
        """The number format as the integer that an asymmetric grid has."""
        assert isinstance(self.format, Int)  # Scheme refuses zero points elsewhere
        return self.format


def pieces(boxes: Array, axes: tuple[int, ...], weights: Array | None) -> Iterator[tuple[Array, Array | None]]:
    """Yield `boxes` and `weights`; a single box, which can be a whole tensor, in parts of what fits a cache."""
    if boxes.shape[0] > 1 or 1 not in axes:
        yield boxes, weights
        return
    rows = max(1, numbers_at_once(boxes) // max(1, prod(boxes.shape) // boxes.shape[1]))
    for start in range(0, boxes.shape[1], rows):
        own = slice(start, min(start + rows, boxes.shape[1]))
        yield boxes[:, own, ...], None if weights is None else weights[:, own, ...]


def larger(a: Array, b: Array) -> Array:
    """Return the elementwise maximum."""
    xp = array_namespace(a)
    return xp.where(a > b, a, b)
