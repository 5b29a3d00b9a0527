"""Scales that are stored as levels of a format of their own: the level of least squared error for each box.

min over levels s of sum w (x - round_to_grid(x / (s g)) s g)^2, g being what the levels are counted in: a float for the
tensor (NVFP4), or 1 (E8M0 of the microscaling formats). Every level within a window is tried; none is rounded after.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from fewbit.formats.minifloat import Float
from fewbit.formats.number_format import NumberFormat
from fewbit.numerics.lookup import rank
from fewbit.numerics.loop import repeat, whole
from fewbit.numerics.namespace import Array, array_namespace, constants_like
from fewbit.ranges.compiled_floats import are_compiled, best_places, encode
from fewbit.ranges.grid import Grid

#: The widest scale that is tried, as a share of the one that the extremes ask for: 6 of e2m1 has a neighbour 4.
_WIDEST = 1.6


@dataclass(frozen=True, slots=True)
class ScaleLevels:
    """The positive levels of the format of a scale."""

    format: NumberFormat
    #: The least scale that is surely tried, as a share of the one that the extremes ask for.
    smallest: float = 0.4

    @property
    def _levels(self) -> tuple[float, ...]:
        form: Any = self.format  # every format can be hashed
        return _positive(form)

    def nearest(self, wanted: Array, unit: Array) -> Array:
        """Return the codes of the levels nearest to the scales `wanted`, counted in `unit`; none stands for 0."""
        if isinstance(self.format, Float) and are_compiled(wanted, self.format):
            xp = array_namespace(wanted)
            unit = xp.broadcast_to(unit, wanted.shape)
            return self.positive(encode(wanted[..., None], unit[..., None], self.format)[..., 0])
        return self.positive(self.format.encode(wanted * (1.0 / unit)))

    def positive(self, codes: Array) -> Array:
        """Return `codes` with those that stand for 0 replaced by the least level: a scale of 0 erases a group."""
        xp = array_namespace(codes)
        least = self.format.encode(constants_like([self._levels[0]], "float32", codes))
        return xp.where(self.format.decode(codes) > 0.0, codes, xp.broadcast_to(least, codes.shape))

    @whole
    def __call__(
        self,
        boxes: Array,
        axes: tuple[int, ...],
        grid: Grid,
        weights: Array | None,
        wanted: Array,
        unit: Array,
    ) -> tuple[Array, Array]:
        """Return the scale of each box that leaves the least error, and its code.

        `wanted` are the scales that clip nothing; the level nearest to it stays where none is better.
        """
        xp = array_namespace(boxes)
        levels = constants_like(list(self._levels), "float32", boxes)
        last = rank(self._levels, wanted * (1.0 / unit) * _WIDEST) - 1
        steps = _within(self._levels, self.smallest / _WIDEST)
        one_row = boxes.ndim == 4 and boxes.shape[1] == 1
        if one_row and isinstance(grid.format, Float) and are_compiled(boxes, grid.format):
            codes = self.nearest(wanted, unit)
            scales = self.format.decode(codes) * unit, last, xp.broadcast_to(unit, wanted.shape)
            place = best_places(boxes, weights, grid.format, scales, (self._levels, steps))
            known = xp.take(self.format.encode(levels), xp.reshape(xp.clip(place, 0, None), (-1,)), axis=0)
            codes = xp.where(place < 0, codes, xp.reshape(known, wanted.shape))
            return self.format.decode(codes) * unit, codes

        def trial(codes: Array) -> tuple[Array, Array, Array]:
            scale = self.format.decode(codes) * unit
            return scale, codes, grid.error_under((scale, None), boxes, axes, weights)

        def better(step: Any, best: tuple[Array, ...]) -> tuple[Array, ...]:
            place = xp.clip(last - step, 0, levels.shape[0] - 1)
            level = xp.reshape(xp.take(levels, xp.reshape(place, (-1,)), axis=0), wanted.shape)
            found = trial(self.format.encode(level))
            improved = found[2] < best[2]
            return tuple(xp.where(improved, new, old) for new, old in zip(found, best, strict=True))

        best = repeat(steps, better, trial(self.nearest(wanted, unit)))
        return best[0], best[1]


@lru_cache
def _positive(form: Any) -> tuple[float, ...]:
    return tuple(level for level in form.levels if level > 0.0)


@lru_cache
def _within(levels: tuple[float, ...], ratio: float) -> int:
    """Return how many levels there are at most from one down to `ratio` times it, and the next."""
    ends = [bisect_right(levels, level / ratio) for level in levels]
    return max(end - start for start, end in enumerate(ends)) + 1
