"""Where the arrays of a quantized parameter lie: cut along the axes of the mesh that the parameter was cut along.

An axis of a matrix is cut as the axis of the parameter that runs slowest along it, where nothing else of it is cut and
the number of parts divides its length: rows, groups, bytes of codes.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from fewbit.frontends.jax.packed_weight import PackedWeight
from fewbit.frontends.jax.view import Run

#: Arrays whose last axis is that of the columns, or of their groups.
_BY_COLUMN = ("codes", "scale", "zero_point", "minimum")


def placed(packed: PackedWeight, sharding: Any) -> PackedWeight:
    """Return a quantized parameter on the devices of the float one, which has `sharding`."""
    where = shardings(packed, sharding)
    arrays = {key: jax.device_put(own, where[key]) for key, own in packed.arrays.items()}
    return PackedWeight(arrays, packed.about)


def shardings(packed: PackedWeight, sharding: Any) -> dict[str, Any]:
    """Return the sharding of each array by name; arrays may be shapes alone."""
    if not isinstance(sharding, NamedSharding):
        return dict.fromkeys(packed.arrays, sharding)
    layout, cut = packed.about.layout, [*sharding.spec, *[None] * len(packed.about.shape)]
    sizes = dict(sharding.mesh.shape)
    stack = [_along(run, cut, packed.about.shape) for run in layout.stack]
    out, columns = (_along(run, cut, packed.about.shape) for run in (layout.out, layout.columns))
    found: dict[str, Any] = {}
    make: Any = PartitionSpec
    for key, own in packed.arrays.items():
        last = columns if key.rpartition(".")[2] in _BY_COLUMN else None
        wanted = [*stack, *([] if key.startswith("input_") else [out, last])]
        wanted += [None] * (len(own.shape) - len(wanted))
        spec = [_fitting(axes, size, sizes) for axes, size in zip(wanted, own.shape, strict=True)]
        found[key] = NamedSharding(sharding.mesh, make(*spec))
    return found


def _along(run: Run, cut: list[Any], shape: tuple[int, ...]) -> Any:
    """Return the axes of the mesh that a run is cut along, or `None`."""
    if not run or any(cut[atom.axis] is not None for atom in run[1:]):
        return None
    first = run[0]
    slowest = first.stride * first.size == shape[first.axis]
    return cut[first.axis] if slowest else None


def _fitting(axes: Any, size: int, sizes: Mapping[str, int]) -> Any:
    parts = prod(sizes[own] for own in (axes if isinstance(axes, tuple) else (axes,))) if axes is not None else 1
    return axes if size % parts == 0 and size >= parts else None
