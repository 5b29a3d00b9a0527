"""What lies between layers and those that read them where every operator acts on each number alone.

f(x)[..., sources] = f(x[..., sources]): with the rows of all makers taken again, so is every number on the way.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from fewbit.frontends.onnx.channel_scaling import is_free
from fewbit.frontends.onnx.constant import numbers_of, own_constant, put
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


@dataclass(frozen=True, slots=True)
class Elementwise:
    """The way from layers to a value, which can get wider as a whole."""

    makers: tuple[GraphLayer, ...]
    #: A node with the place of a constant that has a number for each channel: biases, gains, slopes.
    vectors: tuple[tuple[ir.Node, int], ...]
    #: Everything that gets wider.
    values: tuple[ir.Value, ...]

    @classmethod
    def behind(
        cls, value: ir.Value, width: int, layers: Mapping[int, GraphLayer], readers: Collection[int]
    ) -> Elementwise | None:
        """Return the way to `value`, which has `width` channels; `None`: something on it cannot get wider.

        `layers` are known by their nodes' identities, as are the `readers` of the value, which may read all of it.
        """
        return _Search(width, layers).way(value, readers)

    @property
    def names(self) -> list[str]:
        """The names of the layers, in the order of the graph's end to its start."""
        return [own.layer.name for own in self.makers]

    def widen(self, sources: Channels) -> None:
        """Let channel j be what channel `sources[j]` was."""
        for own in self.makers:
            put(own.weight, own.arrangement.stored(own.arrangement.matrix(numbers_of(own.weight))[sources]))
        for node, place in self.vectors:
            vector = own_constant(node, place)
            put(vector, np.take(numbers_of(vector), sources, axis=-1))
        for value in self.values:
            value.shape = None  # what was declared no longer holds


@dataclass(slots=True)
class _Search:
    """A walk back from a value."""

    width: int
    layers: Mapping[int, GraphLayer]
    makers: dict[int, GraphLayer] = field(default_factory=dict)
    #: By identity, those of layers too.
    nodes: dict[int, ir.Node] = field(default_factory=dict)
    vectors: list[tuple[ir.Node, int]] = field(default_factory=list)
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
            return node.op_type in _ALONE.get(node.domain.removeprefix("ai.onnx"), ())
        self.makers[id(node)] = own
        return own.node.op_type in ("MatMul", "Gemm") and is_free(own) and own.layer.shape[0] == self.width

    def _activations(self, node: ir.Node) -> list[ir.Value] | None:
        """Return what gets wider in front of a node; `None`: a constant that cannot."""
        found = []
        for place, given in enumerate(node.inputs):
            if given is None or (id(node) in self.makers and place < 2):
                continue
            if not is_constant(given):
                found.append(given)
            elif (size := numbers_of(given).shape[-1:]) == (self.width,) and self.width > 1:
                self.vectors.append((node, place))
            elif size not in ((), (1,)):
                return None
        return found
