"""Means over all positions of a picture as GlobalAveragePool, which runtimes compute in integers: the same function.

ReduceMean(x, axes 2 and on) = GlobalAveragePool(x), flattened where it keeps no axes. torch exports `mean((2, 3))` and
AdaptiveAvgPool2d(1) as the one. A mean over the last of three axes is that of a norm over channels, and stays.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fewbit.onnx_graph.constants import is_constant

#: Types that GlobalAveragePool takes.
_TYPES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
#: Operators whose output has the type and the axes of their first input.
_KEEP = ("BatchNormalization", "Clip", "Elu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "Relu", "Sigmoid")
#: Operators that multiply by a kernel.
_KERNELS = ("Conv", "ConvTranspose")


def pool_means(model: ir.Model) -> None:
    """Make a GlobalAveragePool of each ReduceMean over all but samples and channels, in place."""
    for graph in model.graphs():
        for node in graph:
            if node.op_type == "ReduceMean" and node.domain in ("", "ai.onnx") and _is_over_positions(node):
                _pool(node)


def _pool(node: ir.Node) -> None:
    graph, output = node.graph, node.outputs[0]
    assert graph is not None
    pool = ir.node("GlobalAveragePool", [node.inputs[0]], name=node.name)
    last = pool
    if not _number(node, "keepdims", 1):
        last = ir.node("Flatten", pool.outputs, {"axis": 1})
        pool.outputs[0].name = f"{output.name}/pooled"
    for own in (pool, last):
        own.metadata_props.update(node.metadata_props)
    made, name = last.outputs[0], output.name
    made.shape, made.type = output.shape, output.type
    graph.insert_before(node, [pool] if last is pool else [pool, last])
    output.replace_all_uses_with(made, replace_graph_outputs=True)
    graph.remove(node, safe=True)
    output.name, made.name = None, name


def _is_over_positions(node: ir.Node) -> bool:
    """Whether a mean is over all axes behind the channels of pictures, of numbers that can be pooled."""
    axes, source = _axes(node), node.inputs[0]
    rank, kind = _known(source) if source is not None else (None, None)
    if axes is None or rank is None or rank < 4 or kind not in _TYPES:
        return False
    return sorted(axis % rank for axis in axes) == list(range(2, rank))


def _known(value: ir.Value) -> tuple[int | None, ir.DataType | None]:
    """Return how many axes a value has and its type, where the graph says it or a kernel before it does."""
    while value.shape is None or value.dtype is None:
        maker = value.producer()
        if maker is None or maker.domain not in ("", "ai.onnx"):
            return None, None
        if maker.op_type in _KERNELS:
            weight = maker.inputs[1]
            known = weight is not None and is_constant(weight) and weight.const_value is not None
            return (len(weight.const_value.shape), weight.const_value.dtype) if known else (None, None)  # type: ignore[union-attr]
        source = maker.inputs[0] if maker.op_type in _KEEP else None
        if source is None:
            return None, None
        value = source
    return len(value.shape), value.dtype


def _axes(node: ir.Node) -> list[int] | None:
    """Return the axes of a mean, an attribute before operator set 18; `None`: they are not known."""
    if "axes" in node.attributes:
        return list(node.attributes["axes"].as_ints())
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None or not is_constant(value) or value.const_value is None:
        return None
    return [int(axis) for axis in np.atleast_1d(value.const_value.numpy())]


def _number(node: ir.Node, name: str, usual: int) -> int:
    return node.attributes[name].as_int() if name in node.attributes else usual
