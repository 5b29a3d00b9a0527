"""A batch as what a graph is fed with: arrays by input name, checked against what the graph declares.

A batch is a dict of them, a tuple in the order of the inputs, or one array for a graph with one input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.errors import CalibrationError
from fewbit.numerics.namespace import to_numpy
from fewbit.samples.model_input import ModelInput, listed, require_names

Numbers = np.ndarray[Any, Any]


def inputs_of(graph: ir.Graph) -> list[ModelInput]:
    """Return the inputs of `graph` that have no value of their own."""
    return [_declared(value) for value in graph.inputs if value.name not in graph.initializers]


def feeds_of(graph: ir.Graph, batch: Any) -> dict[str, Numbers]:
    """Return the arrays of `batch` by name for `graph`; raises as `feeds_for` does."""
    return feeds_for(inputs_of(graph), batch)


def feeds_for(inputs: Sequence[ModelInput], batch: Any, *, any_float: bool = False) -> dict[str, Numbers]:
    """Return the arrays of `batch` by name; tensors of other frameworks are taken over.

    With `any_float` an input takes every type of floats and is given its own.

    Raises:
        CalibrationError: an input is missing or unknown, or has another type or shape than the graph declares.

    """
    given = _by_name(batch, [own.name for own in inputs])
    require_names(given, inputs, "a batch")
    by_name = {own.name: own for own in inputs}
    return {name: _checked(by_name[name], array, any_float=any_float) for name, array in given.items()}


def _declared(value: ir.Value) -> ModelInput:
    """Return an input as it is declared; texts have no type of NumPy that fits all of them."""
    known = value.dtype is not None and value.dtype != ir.DataType.STRING
    return ModelInput(
        name=value.name or "",
        dtype=value.dtype.numpy() if known and value.dtype is not None else None,
        shape=None if value.shape is None else tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape),
    )


def _by_name(batch: Any, names: Sequence[str]) -> dict[str, Any]:
    if isinstance(batch, Mapping):
        return dict(batch)
    arrays = batch if isinstance(batch, tuple) else (batch,)
    if len(arrays) != len(names):
        raise CalibrationError(
            f"a batch of {len(arrays)} arrays does not fit a model with the inputs {listed(names)}; "
            "give a dict of arrays by name, or a tuple in this order"
        )
    return dict(zip(names, arrays, strict=True))


def _checked(own: ModelInput, array: Any, *, any_float: bool) -> Numbers:
    """Return `array` as NumPy's, of the type and shape that the graph declares."""
    if not hasattr(array, "shape"):
        raise CalibrationError(
            f"input {own.name!r} is given a {type(array).__name__}, which is no array; wrap it in numpy.asarray"
        )
    numbers: Numbers = to_numpy(array)
    if any_float and own.dtype is not None and {own.dtype.kind, numbers.dtype.kind} == {"f"}:
        with np.errstate(over="ignore"):  # what becomes infinite shows in the outputs
            numbers = numbers.astype(own.dtype, copy=False)
    wrong = own.misfit(numbers.dtype, numbers.shape)
    if wrong:
        raise CalibrationError("; ".join(wrong))
    return np.asarray(numbers, order="C")
