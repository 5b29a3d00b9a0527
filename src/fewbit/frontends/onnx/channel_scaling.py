"""Constants of a graph under which a node puts out divided channels, or takes multiplied ones for what they were.

Rows: W / f, b / f. Columns: W diag(f). A gain: g / f, and a shift likewise. Numbers are put in place: nodes stay.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fewbit.frontends.onnx.batches import Numbers
from fewbit.frontends.onnx.constant import numbers_of, own_constant, tensor_like
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.constants import is_constant
from fewbit.onnx_graph.layers import FLOATS, GraphLayer
from fewbit.transforms.link import Factors

#: Constants with the tensors that they are to have, or had.
Changes = list[tuple[ir.Value, ir.TensorProtocol]]
#: Where the gain and the shift of a norm stand among its inputs, by operator; `None`: it has no shift.
_NORMS: dict[str, tuple[int, int | None]] = {
    "BatchNormalization": (1, 2),
    "InstanceNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1, None),
    "SimplifiedLayerNormalization": (1, None),
}
#: Those whose channels lie behind the axis of the samples.
_CHANNELS_FIRST = ("BatchNormalization", "InstanceNormalization")


@dataclass(frozen=True, slots=True)
class Producer:
    """What puts out channels that can be divided."""

    name: str
    #: The nodes that it is made of.
    nodes: tuple[ir.Node, ...]
    result: ir.Value
    #: The axis of its channels.
    axis: int
    #: A node with the place of an input that is divided by channel, as (channels,) or a part of it.
    vectors: tuple[tuple[ir.Node, int], ...]
    #: Where it is a layer; else the first of the vectors is its gain.
    layer: GraphLayer | None = None

    def gain(self) -> Factors | None:
        """Return the numbers of a gain, (channels,)."""
        if self.layer is not None:
            return None
        node, index = self.vectors[0]
        return numbers_of(node.inputs[index]).astype(np.float64).reshape(-1)

    def divided(self, factors: Factors) -> Changes:
        """Return the constants with which output channel c is divided by `factors[c]`."""
        changes: Changes = []
        if self.layer is not None:
            own = self.layer
            matrix = own.arrangement.matrix(numbers_of(own.weight)).astype(np.float64) / factors[:, None]
            changes.append((own.weight, tensor_like(own.weight, own.arrangement.stored(matrix))))
        for node, index in self.vectors:
            value = own_constant(node, index)
            numbers = numbers_of(value)
            changes.append((value, tensor_like(value, (numbers.reshape(-1) / factors).reshape(numbers.shape))))
        return changes


def multiplied(own: GraphLayer, factors: Factors) -> Changes:
    """Return the weight of a layer whose input channel j is multiplied by `factors[j]`."""
    apart = by_input(own).astype(np.float64) * factors.reshape(_groups(own), 1, -1, 1)
    matrix = apart.reshape(own.layer.shape)
    return [(own.weight, tensor_like(own.weight, own.arrangement.stored(matrix)))]


def input_magnitudes(own: GraphLayer) -> Factors:
    """Return the largest magnitude of the weights that read each input channel, float64 (inputs,)."""
    found: Factors = np.abs(by_input(own)).max(axis=(1, 3)).reshape(-1).astype(np.float64)
    return found


def exchange(changes: Iterable[tuple[ir.Value, ir.TensorProtocol]]) -> Changes:
    """Give constants these numbers, and return those that they had."""
    before: Changes = []
    for value, tensor in changes:
        assert value.const_value is not None
        before.append((value, value.const_value))
        value.const_value = tensor
    return before[::-1]


def producer_of(node: ir.Node, layers: dict[int, GraphLayer]) -> Producer | None:
    """Return what `node` begins that can divide its channels: a layer, a norm, or a product with a constant vector."""
    own = layers.get(id(node))
    if own is not None:
        return _of_layer(own)
    look = _of_norm if node.op_type in _NORMS else _of_vector if node.op_type == "Mul" else None
    return look(node) if look else None


def is_free(own: GraphLayer) -> bool:
    """Whether the weight of a layer is there for it alone."""
    return not own.layer.tied and len(own.weight.uses()) == 1 and own.layer.kind != "embedding"


def _of_layer(own: GraphLayer) -> Producer | None:
    axis = 1 if isinstance(own.arrangement, Kernel) else -1
    added = own.node.inputs[2] if len(own.node.inputs) > 2 else None
    if not is_free(own) or (added is not None and own.bias_value is None):
        return None
    if own.bias_add is not None:
        place = 1 - list(own.bias_add.inputs).index(own.output)
        return Producer(own.layer.name, (own.node, own.bias_add), own.result, axis, ((own.bias_add, place),), own)
    vectors = ((own.node, 2),) if added is not None else ()
    return Producer(own.layer.name, (own.node,), own.result, axis, vectors, own)


def _of_norm(node: ir.Node) -> Producer | None:
    gain, shift = _NORMS[node.op_type]
    places = [gain, *([shift] if shift is not None and len(node.inputs) > shift and node.inputs[shift] else [])]
    training = "training_mode" in node.attributes and node.attributes["training_mode"].as_int()
    if training or not all(_vector_axis(node.inputs[place]) == -1 for place in places):
        return None
    axis = 1 if node.op_type in _CHANNELS_FIRST else -1
    name = _name(node, gain)
    return Producer(name, (node,), node.outputs[0], axis, tuple((node, place) for place in places))


def _of_vector(node: ir.Node) -> Producer | None:
    """Return x * g, or x * g + b."""
    place = next((place for place in (0, 1) if _vector_axis(node.inputs[place]) is not None), None)
    if place is None or is_constant(node.inputs[1 - place]):
        return None
    axis = _vector_axis(node.inputs[place])
    assert axis is not None
    result, nodes, vectors = node.outputs[0], [node], [(node, place)]
    uses = list(result.uses())
    if len(uses) == 1 and not result.is_graph_output() and uses[0][0].op_type == "Add":
        add, read = uses[0]
        if (
            add.graph is node.graph
            and _vector_axis(add.inputs[1 - read]) == axis
            and _size(add, 1 - read) == _size(node, place)
        ):
            result, nodes, vectors = add.outputs[0], [node, add], [(node, place), (add, 1 - read)]
    return Producer(_name(node, place), tuple(nodes), result, axis, tuple(vectors))


def _name(node: ir.Node, place: int) -> str:
    value = node.inputs[place]
    name = (value.name if value is not None else None) or ""
    shared = value is None or len(value.uses()) > 1 or not name.endswith(".weight")
    return f"{node.op_type}:{node.outputs[0].name}" if shared else name.removesuffix(".weight")


def _size(node: ir.Node, place: int) -> int:
    return numbers_of(node.inputs[place]).size


def _vector_axis(value: ir.Value | None) -> int | None:
    """Return the axis of a constant of floats along which alone it has several numbers, from the last; else `None`."""
    if not is_constant(value) or value is None or value.const_value is None or value.const_value.dtype not in FLOATS:
        return None
    shape = tuple(value.const_value.shape.numpy())
    axes = [axis - len(shape) for axis, size in enumerate(shape) if size > 1]
    return axes[0] if len(axes) == 1 else None


def _groups(own: GraphLayer) -> int:
    return own.arrangement.groups if isinstance(own.arrangement, Kernel) else 1


def by_input(own: GraphLayer) -> Numbers:
    """Return the weight as (groups, outputs of a group, inputs of a group, positions)."""
    positions = own.arrangement.positions if isinstance(own.arrangement, Kernel) else 1
    matrix = own.arrangement.matrix(numbers_of(own.weight))
    return matrix.reshape(_groups(own), -1, matrix.shape[1] // positions, positions)
