"""What the rounding errors of columns count: the diagonal of the second moment of the inputs, and a little for each."""

from __future__ import annotations

from fewbit.numerics.namespace import Array, array_namespace, device, to_numpy

#: What every column counts besides, as a share of the mean: those that no input reached are rounded too.
_LEAST = 0.01


def importance_of(moment: Array, weight: Array) -> Array:
    """Return what errors of the columns of `weight` (out, in) count, float32 (in,) with a mean of 1.

    `moment` is (in, in); of a convolution in groups (groups, in, in), and the result (out, in).
    """
    xp, own = array_namespace(weight), to_numpy(moment)
    diagonal = own.diagonal(axis1=-2, axis2=-1).astype("float64")
    mean = diagonal.mean(axis=-1, keepdims=True)
    shares = diagonal / (mean + (mean == 0)) + _LEAST
    if own.ndim == 3:
        shares = shares.repeat(weight.shape[0] // own.shape[0], axis=0)
    return xp.asarray(shares.astype("float32"), device=device(weight))
