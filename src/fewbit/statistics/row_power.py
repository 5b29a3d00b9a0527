"""Rows that count alike: each divided by its root mean square, x / sqrt(mean of x^2)."""

from __future__ import annotations

from fewbit.numerics.namespace import Array, array_namespace


def of_equal_power(rows: Array) -> Array:
    """Return float32 `rows` (n, width) divided by the root mean square of each; what overflows becomes NaN."""
    xp = array_namespace(rows)
    power = xp.vecdot(rows, rows)[:, None] / rows.shape[1]
    # What overflows becomes NaN here, and is refused, instead of a row of zeros.
    power = xp.where(power > 0, power, xp.ones_like(power)) + (power - power)
    return rows / xp.sqrt(power)
