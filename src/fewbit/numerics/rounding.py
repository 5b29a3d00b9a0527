"""Rounding to whole numbers: to nearest, ties to even, or up with the probability of the fractional part.

`straight_through` gives a rounded value the gradient 1 inside the range and 0 where it saturated (Bengio et al. 2013,
arXiv 1308.3432); its value is that of `rounded` to the bit.
"""

from __future__ import annotations

from fewbit.numerics.namespace import Array, array_namespace, compiling, is_jax, is_torch, stop_gradient, to_float32


def to_whole(values: Array, noise: Array | None = None) -> Array:
    """Return the nearest whole numbers, or with `noise` uniform in [0, 1) one of both neighbours, right on average."""
    xp = array_namespace(values)
    if noise is None:
        return xp.round(values)
    below = xp.floor(values)
    # Not floor(values + noise): that sum rounds, and would move numbers that are whole already.
    return below + xp.astype(noise < values - below, xp.float32)


def straight_through(values: Array, rounded: Array, low: Array | float, high: Array | float) -> Array:
    """Return `rounded`, with the gradient of `values` where they lie between `low` and `high`, and none elsewhere."""
    if not (is_jax(values) or (is_torch(values) and values.requires_grad)):
        return rounded
    if is_torch(values) and not compiling(values):
        from fewbit.numerics.torch_gradient import Straight

        return Straight.apply(values, stop_gradient(rounded), low, high)  # type: ignore[no-untyped-call]
    xp = array_namespace(values)
    inside = xp.where((values >= low) & (values <= high), values, xp.zeros_like(values))
    # x - x is 0 in value and 1 in gradient; adding it before the rounded value would lose bits of that.
    return stop_gradient(rounded) + (inside - stop_gradient(inside))


def passed(values: Array, rounded: Array) -> Array:
    """Return `rounded` with the gradient of all `values`."""
    return straight_through(values, rounded, -float("inf"), float("inf"))


def flushed(values: Array) -> Array:
    """Return `values` as float32, subnormals as 0, with the gradient of all of them, those that are 0 too."""
    return passed(values, to_float32(stop_gradient(values)))
