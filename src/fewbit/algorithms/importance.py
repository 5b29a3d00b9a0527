"""What the rounding errors of columns count: the mean squares of the inputs, and a little for each.

They are the diagonal of the second moment, or known by themselves.
"""

from __future__ import annotations

from fewbit.numerics.namespace import Array, array_namespace, device, to_numpy

#: What every column counts besides, as a share of the mean: those that no input reached are rounded too.
_LEAST = 0.01


def importance_of(moment: Array, weight: Array) -> Array:
    """Return what errors of the columns of `weight` (out, in) count, float32 (in,) with a mean of 1.

    `moment` is (in, in); of a convolution in groups (groups, in, in), and the result (out, in).
    """
    return importance_of_squares(to_numpy(moment).diagonal(axis1=-2, axis2=-1), weight)


def importance_of_squares(squares: Array, weight: Array) -> Array:
    """Return the same for the mean squares of the columns (in,); of a convolution in groups (groups, in)."""
    xp, own = array_namespace(weight), to_numpy(squares).astype("float64")
    mean = own.mean(axis=-1, keepdims=True)
    shares = own / (mean + (mean == 0)) + _LEAST
    if own.ndim == 2:
        shares = shares.repeat(weight.shape[0] // own.shape[0], axis=0)
    return xp.asarray(shares.astype("float32"), device=device(weight))
