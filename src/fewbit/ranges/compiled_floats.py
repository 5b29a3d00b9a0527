"""Groups of small floats through compiled loops, where arrays are on the CPU and no compiler of a framework looks on.

The same bits as by operations on whole arrays, several times as fast: `fewbit.numerics.float_groups`.
"""

from __future__ import annotations

from importlib.util import find_spec
from math import frexp
from typing import Any

import array_api_compat
import numpy as np

from fewbit.formats.minifloat import Float
from fewbit.formats.number_format import NumberFormat
from fewbit.numerics.namespace import Array, array_namespace, compiling, device, is_torch, to_numpy
from fewbit.numerics.threads import threads_for


def are_compiled(boxes: Array, form: NumberFormat) -> bool:
    """Whether loops are compiled for groups of `form`, as `fewbit.numerics.groups.split` returns them."""
    here = array_api_compat.is_numpy_array(boxes) or (is_torch(boxes) and boxes.device.type == "cpu")
    if not here or compiling(boxes):
        return False
    small = isinstance(form, Float) and form.bits <= 8 and form.specials != "fnuz"
    return small and find_spec("numba") is not None


def best_places(
    boxes: Array, weights: Array | None, form: Float, scales: tuple[Array, ...], tried: tuple[tuple[float, ...], int]
) -> Array:
    """Return, in the shape of the scales, the places of the levels of least error, -1 where the first scale is best.

    `scales` are those to begin with, the places of the highest levels to try, and what levels are counted in; `tried`
    are the levels and how many are tried.
    """
    from fewbit.numerics.float_groups import search_levels

    begun, last, unit = (_writable(to_numpy(own), dtype) for own, dtype in zip(scales, "fif", strict=True))
    if weights is not None:
        weights = _writable(np.broadcast_to(to_numpy(weights), boxes.shape), "f").reshape(-1, boxes.shape[-1])
    found = np.empty(begun.shape, np.int32)
    values = _writable(to_numpy(boxes), "f").reshape(-1, boxes.shape[-1])
    levels = np.asarray(tried[0], np.float32), tried[1]
    with threads_for(values.size):
        scales = begun.reshape(-1), last.reshape(-1), unit.reshape(-1), *levels
        search_levels(values, weights, _numbers(form), scales, found.reshape(-1))
    return array_namespace(boxes).asarray(found, device=device(boxes))


def encode(boxes: Array, scale: Array, form: Float) -> Array:
    """Return the uint8 codes of `boxes` under the scales of groups, broadcast to them."""
    from fewbit.numerics.float_groups import encode_groups

    codes = np.empty(tuple(boxes.shape), np.uint8)
    size = boxes.shape[-1]
    values = _writable(to_numpy(boxes), "f").reshape(-1, size)
    scales = _writable(np.broadcast_to(to_numpy(scale), (*codes.shape[:-1], 1)), "f").reshape(-1)
    with threads_for(values.size):
        encode_groups(values, scales, _numbers(form), np.int32(1 << (form.bits - 1)), codes.reshape(-1, size))
    return array_namespace(boxes).asarray(codes, device=device(boxes))


def _writable(values: Any, dtype: str) -> Any:
    """Return float32 or int32 `values` so that no loop is compiled again for them."""
    return np.require(values, {"f": np.float32, "i": np.int32}[dtype], ["C", "W"])


def _numbers(form: Float) -> tuple[Any, ...]:
    """Return the exponent of the least step, the bits of a mantissa, and the largest magnitude."""
    return np.int32(frexp(form.magnitudes[1])[1] - 1), np.int32(form.mantissa), np.float32(form.maximum)
