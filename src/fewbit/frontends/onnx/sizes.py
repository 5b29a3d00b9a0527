"""Shapes of the values of a graph for a given batch, and the memory that they take: without running anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod

import onnx
import onnx_ir as ir

from fewbit.frontends.onnx.batches import Numbers
from fewbit.frontends.onnx.flow import Flow

#: Constants of up to so many bytes may hold shapes; of others the shape is enough.
_SMALL = 1 << 10
#: Bytes of a number: statistics are taken of float32.
_WIDE = 4


def sizes_of(model: ir.Model, flow: Flow, feeds: Mapping[str, Numbers]) -> dict[str, int]:
    """Return the bytes that values have as float32; none for a value whose shape depends on the data."""
    return {name: _WIDE * prod(shape) for name, shape in shapes_of(model, flow, feeds).items()}


def shapes_of(model: ir.Model, flow: Flow, feeds: Mapping[str, Numbers]) -> dict[str, tuple[int, ...]]:
    """Return the shapes that shape inference finds; none for a value whose shape depends on the data."""
    graph = onnx.GraphProto(name="sizes")
    graph.node.extend(ir.serde.serialize_node(node) for node in flow.nodes)
    for name, numbers in feeds.items():
        kind = onnx.helper.np_dtype_to_tensor_dtype(numbers.dtype)
        graph.input.append(onnx.helper.make_tensor_value_info(name, kind, numbers.shape))
    for name, value in flow.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and tensor.nbytes <= _SMALL and tensor.dtype != ir.DataType.STRING:
            graph.initializer.append(ir.serde.serialize_tensor(ir.Tensor(tensor.numpy(), dtype=tensor.dtype)))
            graph.initializer[-1].name = name
        elif tensor is not None:
            shape = [int(size) for size in tensor.shape.numpy()]
            graph.input.append(onnx.helper.make_tensor_value_info(name, int(tensor.dtype), shape))
    imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
    functions = [ir.serde.serialize_function(function) for function in model.functions.values()]
    proto = onnx.ModelProto(ir_version=model.ir_version, graph=graph, opset_import=imports, functions=functions)
    found = onnx.shape_inference.infer_shapes(proto, data_prop=True).graph
    shapes = {name: numbers.shape for name, numbers in feeds.items()}
    for value in found.value_info:
        shape = value.type.tensor_type.shape
        if value.type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in shape.dim):
            shapes[value.name] = tuple(dim.dim_value for dim in shape.dim)
    return shapes


def within_bounds(names: Sequence[str], sizes: Mapping[str, int], alive: int, count: int) -> list[list[str]]:
    """Return `names` in runs of at most `count`, with no more than `alive` bytes together; a value may have more.

    A size that is not known counts as all of them.
    """
    runs: list[list[str]] = []
    filled = 0
    for name in names:
        size = sizes.get(name, alive)
        if not runs or filled + size > alive or len(runs[-1]) == count:
            runs.append([])
            filled = 0
        runs[-1].append(name)
        filled += size
    return runs
