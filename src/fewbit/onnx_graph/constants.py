"""Bring constants of a graph into one form: initializers, with Constant, Identity, Transpose and Cast of them computed.

Exporters write a linear layer as MatMul(x, Transpose(weight)); afterwards its weight is the initializer it reads.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass, RemoveUnusedNodesPass

Fold = Callable[[ir.Node, ir.TensorProtocol], ir.TensorProtocol]


def fold_constants(model: ir.Model) -> None:
    """Compute what depends on nothing but initializers, by the operators of `FOLDS`, in place."""
    LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(model)
    for node in [node for node in model.graph.all_nodes() if _is_idle(node)]:
        value, source = node.outputs[0], node.inputs[0]
        assert source is not None
        assert node.graph is not None
        value.replace_all_uses_with(source)
        node.graph.remove(node, safe=True)
    for graph in model.graphs():
        for node in list(graph):
            source = node.inputs[0] if node.op_type in FOLDS and node.domain in ("", "ai.onnx") else None
            if source is None or not is_constant(source) or node.outputs[0].is_graph_output():
                continue
            assert source.const_value is not None
            made = Computed(node, source.const_value)
            value = ir.Value(name=made.name, type=ir.TensorType(made.dtype), shape=made.shape, const_value=made)
            node.outputs[0].replace_all_uses_with(value)
            graph.remove(node, safe=True)
            graph.register_initializer(value)
    RemoveUnusedNodesPass()(model)


def _is_idle(node: ir.Node) -> bool:
    """Whether nothing would be lost with an Identity: an output of a graph has a name of its own."""
    known = node.op_type == "Identity" and node.domain in ("", "ai.onnx") and node.inputs[0] is not None
    return known and not node.outputs[0].is_graph_output()


def origin(value: ir.Value) -> ir.TensorProtocol:
    """Return the tensor of the file that a constant was computed from, or its own: tied weights have one origin."""
    assert value.const_value is not None
    return tensor_of(value.const_value)


def tensor_of(tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    """Return the tensor of the file that `tensor` was computed from, or itself."""
    while isinstance(tensor, Computed):
        tensor = tensor.source
    return tensor


def is_constant(value: ir.Value | None) -> bool:
    """Whether `value` is an initializer whose numbers are known and which no caller can replace."""
    return value is not None and value.is_initializer() and value.const_value is not None and not value.is_graph_input()


class Computed(ir.LazyTensor):
    """The numbers of an initializer that was computed; each time they are read, since they are not kept."""

    def __init__(self, node: ir.Node, source: ir.TensorProtocol) -> None:
        kind = ir.DataType(node.attributes["to"].as_int()) if node.op_type == "Cast" else source.dtype
        shape = ir.Shape(_shape(node, source))
        super().__init__(partial(FOLDS[node.op_type], node, source), dtype=kind, shape=shape, name=node.outputs[0].name)
        #: What computed it, and from what.
        self.node, self.source = node, source


def _transpose(node: ir.Node, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(np.transpose(tensor.numpy(), _order(node, len(tensor.shape))))


def _cast(node: ir.Node, tensor: ir.TensorProtocol) -> ir.TensorProtocol:
    return ir.Tensor(tensor.numpy().astype(ir.DataType(node.attributes["to"].as_int()).numpy()))


#: What is computed at once, by operator.
FOLDS: dict[str, Fold] = {"Transpose": _transpose, "Cast": _cast}


def _order(node: ir.Node, rank: int) -> list[int]:
    return list(node.attributes["perm"].as_ints()) if "perm" in node.attributes else list(range(rank))[::-1]


def _shape(node: ir.Node, tensor: ir.TensorProtocol) -> list[int]:
    shape = list(tensor.shape.numpy())
    return [shape[axis] for axis in _order(node, len(shape))] if node.op_type == "Transpose" else shape
