"""The constant that a node reads: its numbers, one of its own where others read it too, and other numbers like it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fewbit.frontends.onnx.batches import Numbers
from fewbit.onnx_graph.constants import origin


def numbers_of(value: ir.Value | None) -> Numbers:
    """Return the numbers of a constant."""
    assert value is not None
    assert value.const_value is not None
    return value.const_value.numpy()


def own_constant(node: ir.Node, place: int) -> ir.Value:
    """Return the constant that is an input of `node`, made its own where others read it too."""
    value, graph = node.inputs[place], node.graph
    assert value is not None
    assert graph is not None
    if len(value.uses()) == 1 and not value.is_graph_output():
        return value
    name = f"{value.name}:{node.outputs[0].name}"
    made = ir.Value(name=name, type=value.type, shape=value.shape, const_value=value.const_value)
    graph.register_initializer(made)
    node.replace_input_with(place, made)
    return made


def tensor_like(value: ir.Value, numbers: Numbers) -> ir.TensorProtocol:
    """Return numbers of the type that `value` has, under the name that its layer is called after."""
    held = value.const_value
    assert held is not None
    return ir.Tensor(np.ascontiguousarray(numbers, dtype=held.dtype.numpy()), name=origin(value).name)


def put(value: ir.Value, numbers: Numbers) -> None:
    """Give a constant other numbers, perhaps of another shape."""
    value.const_value = tensor_like(value, numbers)
    value.shape = value.const_value.shape  # type: ignore[assignment]
