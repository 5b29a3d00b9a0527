"""What lies between layers and those that read them where every operator acts on each number, or channel, alone.

f(x)[..., sources] = f(x[..., sources]): with the rows of all makers taken again, so is every number on the way. Behind
convolutions channels are along an axis of their own, and poolings and BatchNormalizations act on each.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from fewbit.frontends.onnx.channel_scaling import is_free
from fewbit.frontends.onnx.constant import numbers_of, own_constant, put
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.constants import is_constant
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.transforms.link import Channels

#: Operators that act on each number alone, by domain.
_ALONE = {
    "": frozenset(
        {
            "Abs", "Add", "And", "Cast", "Ceil", "Celu", "Clip", "Cos", "Div", "Dropout", "Elu", "Equal", "Erf", "Exp",
            "Floor", "Gelu", "Greater", "GreaterOrEqual", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Less",
            "LessOrEqual", "Log", "Max", "Min", "Mish", "Mul", "Neg", "Not", "Or", "PRelu", "Pow", "Reciprocal", "Relu",
            "Round", "Selu", "Sigmoid", "Sign", "Sin", "Softplus", "Softsign", "Sqrt", "Sub", "Sum", "Swish", "Tanh",
            "ThresholdedRelu", "Where",
        }
    ),
    "com.microsoft": frozenset({"BiasGelu", "FastGelu", "Gelu", "QuickGelu"}),
}  # fmt: skip

#: Operators that act on each channel alone where channels come behind samples.
_BY_CHANNEL = frozenset({"AveragePool", "BatchNormalization", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})


@dataclass(frozen=True, slots=True)
class Elementwise:
    """The way from layers to a value, which can get wider as a whole."""

    makers: tuple[GraphLayer, ...]
    #: A node with the place of a constant that has a number for each channel, and its axis: biases, gains, slopes.
    vectors: tuple[tuple[ir.Node, int, int], ...]
    #: Everything that gets wider.
    values: tuple[ir.Value, ...]

    @classmethod
    def behind(
        cls, value: ir.Value, width: int, axis: int, layers: Mapping[int, GraphLayer], readers: Collection[int]
    ) -> Elementwise | None:
        """Return the way to `value`, which has `width` channels along `axis`; `None`: something on it cannot get wider.

        The axis counts from the last, which is -1. `layers` are known by their nodes' identities, as are the `readers`
        of the value, which may read all of it.
        """
        return _Search(width, axis, layers).way(value, readers)

    @property
    def names(self) -> list[str]:
        """The names of the layers, in the order of the graph's end to its start."""
        return [own.layer.name for own in self.makers]

    def widen(self, sources: Channels) -> None:
        """Let channel j be what channel `sources[j]` was."""
        for own in self.makers:
            put(own.weight, np.take(numbers_of(own.weight), sources, axis=own.arrangement.out_axis))
        for node, place, axis in self.vectors:
            vector = own_constant(node, place)
            put(vector, np.take(numbers_of(vector), sources, axis=axis))
        for value in self.values:
            value.shape = None  # what was declared no longer holds


@dataclass(slots=True)
class _Search:
    """A walk back from a value."""

    width: int
    axis: int
    layers: Mapping[int, GraphLayer]
    makers: dict[int, GraphLayer] = field(default_factory=dict)
    #: By identity, those of layers too.
    nodes: dict[int, ir.Node] = field(default_factory=dict)
    vectors: list[tuple[ir.Node, int, int]] = field(default_factory=list)
    values: dict[int, ir.Value] = field(default_factory=dict)

    def way(self, value: ir.Value, readers: Collection[int]) -> Elementwise | None:
        waiting, graph = [value], value.graph
        while waiting:
            made = waiting.pop()
            if id(made) in self.values:
                continue
            self.values[id(made)] = made
            node = made.producer()
            known = node is not None and node.graph is graph and not made.is_graph_output()
            if node is None or not known or not self._passes(node):
                return None
            further = self._activations(node)
            if further is None:
                return None
            waiting += further
        inside = self.nodes.keys() | set(readers)
        if not all(id(node) in inside for own in self.values.values() for node, _ in own.uses()):
            return None
        return Elementwise(tuple(self.makers.values()), tuple(self.vectors), tuple(self.values.values()))

    def _passes(self, node: ir.Node) -> bool:
        """Whether what a node makes can get wider."""
        own = self.layers.get(id(node))
        self.nodes[id(node)] = node
        if own is None:
            domain = node.domain.removeprefix("ai.onnx")
            by_channel = self.axis < -1 and not domain and node.op_type in _BY_CHANNEL and len(node.outputs) == 1
            return by_channel or node.op_type in _ALONE.get(domain, ())
        self.makers[id(node)] = own
        return channel_axis(own) == self.axis and is_free(own) and own.layer.shape[0] == self.width

    def _activations(self, node: ir.Node) -> list[ir.Value] | None:
        """Return what gets wider in front of a node; `None`: a constant that cannot."""
        found = []
        for place, given in enumerate(node.inputs):
            if given is None or (id(node) in self.makers and place < 2):
                continue
            if not is_constant(given):
                found.append(given)
                continue
            # What a Conv adds, and what a norm multiplies with, is a vector whatever the axis of the channels.
            axis = -1 if id(node) in self.makers or node.op_type == "BatchNormalization" else self.axis
            shape = numbers_of(given).shape
            size = shape[axis] if len(shape) >= -axis else 1
            if size == self.width > 1:
                self.vectors.append((node, place, axis))
            elif size != 1:
                return None
        return found


def channel_axis(own: GraphLayer) -> int | None:
    """Return the axis of the channels that a layer reads and makes, from the last; `None`: they cannot be widened."""
    kernel = own.arrangement
    if isinstance(kernel, Kernel):
        return None if kernel.transposed or kernel.groups > 1 else 1 - len(kernel.shape)
    return -1 if own.node.op_type in ("MatMul", "Gemm") else None
