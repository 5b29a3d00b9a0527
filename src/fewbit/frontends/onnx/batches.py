"""A batch as what a graph is fed with: arrays by input name, checked against what the graph declares.

A batch is a dict of them, a tuple in the order of the inputs, or one array for a graph with one input.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.errors import CalibrationError
from fewbit.numerics.namespace import to_numpy

Numbers = np.ndarray[Any, Any]


def feeds_of(graph: ir.Graph, batch: Any) -> dict[str, Numbers]:
    """Return the arrays of `batch` by name; tensors of other frameworks are taken over.

    Raises:
        CalibrationError: an input is missing or unknown, or has another type or shape than the graph declares.

    """
    inputs = {value.name or "": value for value in graph.inputs if value.name not in graph.initializers}
    given = _by_name(batch, list(inputs))
    unknown = [name for name in given if name not in inputs]
    missing = [name for name in inputs if name not in given]
    if unknown or missing:
        parts = [f"has no {_listed(missing)}"] if missing else []
        parts += [f"holds {_listed(unknown)}, which the model does not know"] if unknown else []
        raise CalibrationError(f"a batch {' and '.join(parts)}; the inputs of the model are {_listed(list(inputs))}")
    return {name: _checked(inputs[name], array) for name, array in given.items()}


def _by_name(batch: Any, names: list[str]) -> dict[str, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    arrays = batch if isinstance(batch, tuple) else (batch,)
    if len(arrays) != len(names):
        raise CalibrationError(
            f"a batch of {len(arrays)} arrays does not fit a model with the inputs {_listed(names)}; "
            "give a dict of arrays by name, or a tuple in this order"
        )
    return dict(zip(names, arrays, strict=True))


def _checked(value: ir.Value, array: Any) -> Numbers:
    """Return `array` as NumPy's, of the type and shape that the graph declares."""
    if not hasattr(array, "shape"):
        raise CalibrationError(
            f"input {value.name!r} is given a {type(array).__name__}, which is no array; wrap it in numpy.asarray"
        )
    numbers: Numbers = to_numpy(array)
    wanted = value.dtype.numpy() if value.dtype is not None else numbers.dtype
    if numbers.dtype != wanted and value.dtype != ir.DataType.STRING:
        raise CalibrationError(
            f"input {value.name!r} takes {wanted} and is given {numbers.dtype}; "
            f"convert it with .astype({str(wanted)!r})"
        )
    if value.shape is not None and not _fits(value.shape, numbers.shape):
        sizes = [str(dim if isinstance(dim, int) else dim.value or "?") for dim in value.shape]
        declared = f"({', '.join(sizes)})"
        raise CalibrationError(
            f"input {value.name!r} takes shape {declared} and is given {tuple(numbers.shape)}; reshape it"
        )
    return np.asarray(numbers, order="C")


def _fits(declared: ir.Shape, shape: tuple[int, ...]) -> bool:
    return len(declared) == len(shape) and all(
        not isinstance(dim, int) or dim == size for dim, size in zip(declared, shape, strict=True)
    )


def _listed(names: list[str]) -> str:
    return ", ".join(repr(name) for name in names) or "none"
