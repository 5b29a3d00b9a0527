"""Steps (scales) that are learned: d(rounded)/d(scale) = round(v) - v inside the range, the end of the range outside.

v = x / scale. LSQ divides the gradient by sqrt(numbers that share the scale * largest level); LSQ+ learns the zero
point too, which moves what is clipped. Sources: Esser et al., arXiv:1902.08153; Bhalgat et al., arXiv:2004.09576.
"""

from __future__ import annotations

from math import sqrt

from fewbit.formats.integer import Int
from fewbit.formats.scale_type import round_scale
from fewbit.interfaces.gradient import Parameters
from fewbit.numerics.gradient import at_least, at_most, slowed, where_set
from fewbit.numerics.namespace import Array, array_namespace, stop_gradient
from fewbit.numerics.rounding import passed
from fewbit.ranges.grid import Grid

#: A scale that training would take to 0 stays above this.
_LEAST = 2.0**-100


def initial(low: Array, high: Array, grid: Grid) -> dict[str, Array]:
    """Return the scale, and the zero point of an asymmetric grid, for bounds."""
    scale, zero = grid.parameters(low, high)
    return {"scale": scale} if zero is None else {"scale": scale, "zero_point": zero}


def settled(parameters: Parameters, grid: Grid) -> tuple[Array, Array | None]:
    """Return scale and zero point as they are stored; gradients pass straight through the rounding of both."""
    scale = at_least(abs(parameters["scale"]), _LEAST)
    scale = passed(scale, round_scale(stop_gradient(scale), grid.scale_type))
    if "zero_point" not in parameters:
        return scale, None
    zero = at_most(at_least(parameters["zero_point"], grid.integer.qmin), grid.integer.qmax)
    return scale, passed(zero, array_namespace(zero).round(stop_gradient(zero)))


def rounded(boxes: Array, parameters: Parameters, grid: Grid, sharing: int) -> Array:
    """Return the numbers that the codes of `boxes` stand for; gradients reach scale and zero point."""
    largest = grid.integer.qmax if isinstance(grid.format, Int) else grid.format.levels[-1]
    factor = 1.0 / sqrt(sharing * max(largest, 1.0))
    scale, zero = settled({name: slowed(value, factor) for name, value in parameters.items()}, grid)
    if zero is None:
        return grid.rounded(boxes, scale, None)
    fixed = stop_gradient(zero)
    units = grid.units(boxes, scale, fixed)
    places = stop_gradient(boxes * (1.0 / scale)) + fixed
    clipped = (places < grid.integer.qmin - 0.5) | (places > grid.integer.qmax + 0.5)
    # What is clipped is the end of the range less the zero point; fixed - zero is 0 in value.
    return (units + where_set(fixed - zero, clipped)) * scale
