"""HQQ: move the zero point of each group between the codes until most errors are small; needs no data.

min over z of sum |w - s (q - z)|^p with p < 1, q being the codes under z, by half-quadratic splitting: e shrinks the
errors w - s (q - z), then z = mean(q - (w - e) / s). Source: Badri and Shaji, Half-Quadratic Quantization, 2023.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from fewbit.algorithms.solution import Solution
from fewbit.errors import RecipeError, SchemeError
from fewbit.formats.scale_type import round_zero_point
from fewbit.numerics.groups import beside_boxes, box_axes, counts, merge, split
from fewbit.numerics.namespace import Array, array_namespace, to_float32
from fewbit.numerics.summation import tree_sum
from fewbit.qtensor import quantize
from fewbit.ranges import OutputRange
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Hqq:
    """Zero points by half-quadratic splitting; the scale stays that of the range method."""

    #: Exponent p of the norm of the errors; below 1 a few large errors count for little.
    norm: float = 0.7
    #: What the shrinkage is divided by at first, in the units of the weight; the larger, the less is taken off.
    beta: float = 10.0
    #: What beta grows by in each iteration.
    growth: float = 1.01
    #: The most iterations; they end earlier when the mean error no longer falls.
    iterations: int = 20

    def __post_init__(self) -> None:
        for name, least, most in (("norm", 0.0, 1.0), ("beta", 0.0, float("inf")), ("growth", 1.0, float("inf"))):
            given = getattr(self, name)
            number = isinstance(given, int | float) and not isinstance(given, bool)
            if not (number and given > 0.0 and least <= given <= most and given < float("inf")):
                usual = {"norm": "0.7", "beta": "10", "growth": "1.01"}[name]
                raise RecipeError(f"hqq: {name} {given!r:.80} is out of range; {usual} is usual")
        if type(self.iterations) is not int or self.iterations < 1:
            raise RecipeError(f"hqq: iterations {self.iterations!r:.80} is no number of times; 20 is usual")

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "hqq"

    @property
    def statistics(self) -> tuple[str, ...]:
        """It needs none."""
        return ()

    def problem(self, scheme: Scheme) -> str | None:
        """Return why it cannot quantize to `scheme`, with the remedy, or `None`."""
        if isinstance(scheme.ranging, OutputRange):
            return f"hqq sees no inputs, and '{scheme}' clips by them; use mse, or another algorithm"
        if scheme.float_zero:
            return None
        return (
            f"hqq moves a zero point between the codes, and '{scheme}' has none; use a scheme such as "
            "'int4 g64 float-zero', or another algorithm"
        )

    def __call__(self, weight: Array, statistics: Any, scheme: Scheme) -> Solution:  # noqa: ARG002
        """Return `weight` (out, in) rounded under the zero points found; `statistics` are not used.

        Raises:
            SchemeError: the scheme has no float zero point, or ranges that need data.

        """
        if problem := self.problem(scheme):
            raise SchemeError(problem)
        start = quantize(weight, scheme)
        assert start.zero_point is not None
        xp, shape = array_namespace(weight), tuple(weight.shape)
        box = scheme.granularity.box(shape)
        values, scale = split(to_float32(weight), box), beside_boxes(start.scale_values())
        zero = self._zero_point(values, scale, beside_boxes(start.zero_point), scheme, shape)
        qmin, qmax = scheme.grid.integer.qmin, scheme.grid.integer.qmax
        # As far from the codes as any float zero point may lie.
        zero = round_zero_point(xp.clip(zero, 2 * qmin - qmax, 2 * qmax - qmin), scheme.scale_type)
        codes = merge(scheme.grid.codes(values, scale, zero), shape)
        return Solution(replace(start, codes=codes, zero_point=xp.reshape(zero, counts(shape, box))))

    def _zero_point(self, values: Array, scale: Array, zero: Array, scheme: Scheme, shape: tuple[int, ...]) -> Array:
        """Return the zero points that the iterations end with; `values` are boxes, zeros where the last is uneven."""
        xp, axes = array_namespace(values), box_axes(len(shape))
        inside = split(xp.ones_like(merge(values, shape)), scheme.granularity.box(shape))
        size = tree_sum(inside, axes)
        beta, least = self.beta, float("inf")
        for _ in range(self.iterations):
            units = scheme.grid.units(values, scale, zero)
            errors = values - units * scale
            # q - (w - e) / s with q = units + z
            moved = units + zero - (values - self._shrunk(errors, beta)) * (1.0 / scale)
            zero = tree_sum(moved * inside, axes) / size
            beta *= self.growth
            mean = float(xp.mean(xp.abs(errors * inside)))
            if mean >= least:
                break
            least = mean
        return zero

    def _shrunk(self, errors: Array, beta: float) -> Array:
        """Return sign(d) max(|d| - |d|^(p - 1) / beta, 0) of the errors d."""
        xp = array_namespace(errors)
        size = xp.abs(errors)
        safe = xp.where(size > 0.0, size, xp.ones_like(size))
        return xp.sign(errors) * xp.clip(size - safe ** (self.norm - 1.0) / beta, 0.0, float("inf"))
