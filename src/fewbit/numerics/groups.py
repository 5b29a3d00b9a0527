"""Cut an array into equal boxes, one scale each, and put it together again.

`split` turns shape (n0*b0, n1*b1) into (n0, b0, n1, b1); the boxes are reduced over the odd axes. An uneven last
box is filled with zeros, which get codes that `merge` drops; ranges are chosen without them.
"""

from __future__ import annotations

from fewbit.numerics.namespace import Array, array_namespace, device


def counts(shape: tuple[int, ...], box: tuple[int, ...]) -> tuple[int, ...]:
    """Return how many boxes lie along each axis: `ceil(shape / box)`.

    >>> counts((4, 100), (1, 64))
    (4, 2)
    """
    return tuple(-(-size // step) for size, step in zip(shape, box, strict=True))


def box_axes(ndim: int) -> tuple[int, ...]:
    """Return the axes of a split array that lie inside a box."""
    return tuple(range(1, 2 * ndim, 2))


def split(values: Array, box: tuple[int, ...]) -> Array:
    """Return `values` of shape (s0, s1, ...) as (n0, b0, n1, b1, ...), filled with zeros where uneven."""
    xp = array_namespace(values)
    number = counts(tuple(values.shape), box)
    for axis, (n, step) in enumerate(zip(number, box, strict=True)):
        missing = n * step - values.shape[axis]
        if missing:
            filler = (*values.shape[:axis], missing, *values.shape[axis + 1 :])
            values = xp.concat([values, xp.zeros(filler, dtype=values.dtype, device=device(values))], axis=axis)
    return xp.reshape(values, tuple(size for pair in zip(number, box, strict=True) for size in pair))


def merge(boxes: Array, shape: tuple[int, ...]) -> Array:
    """Undo `split`: return shape (s0, s1, ...), without the filling."""
    xp = array_namespace(boxes)
    whole = tuple(boxes.shape[2 * axis] * boxes.shape[2 * axis + 1] for axis in range(len(shape)))
    return xp.reshape(boxes, whole)[tuple(slice(size) for size in shape)]


def beside_boxes(parameters: Array) -> Array:
    """Return per-box parameters of shape (n0, n1, ...) as (n0, 1, n1, 1, ...), ready to broadcast."""
    xp = array_namespace(parameters)
    return xp.reshape(parameters, tuple(size for n in parameters.shape for size in (n, 1)))


def spread(parameters: Array, shape: tuple[int, ...], box: tuple[int, ...]) -> Array:
    """Return per-box parameters (n0, n1, ...) for each number of an array of `shape`."""
    whole = tuple(size for pair in zip(counts(shape, box), box, strict=True) for size in pair)
    return merge(array_namespace(parameters).broadcast_to(beside_boxes(parameters), whole), shape)


def diagonal_blocks(matrix: Array, width: int) -> Array:
    """Return the blocks of `width` on the diagonal of `matrix` (n, n) as float32 (n / width, width, width)."""
    xp = array_namespace(matrix)
    starts = range(0, matrix.shape[0], width)
    return xp.stack([xp.astype(matrix[at : at + width, at : at + width], xp.float32, copy=False) for at in starts])
