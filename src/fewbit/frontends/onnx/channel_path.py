"""The nodes between what puts out channels and the layers that read them, and which input of these is which channel.

In run t channel c is multiplied by 2^e, e from the t-th octal digit of c; a layer that gets x_j 2^e in its place j
reads channel c there. The nodes between run alone, on random positive numbers, so that no Relu hides a channel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from fewbit.frontends.onnx.batches import Numbers
from fewbit.frontends.onnx.channel_scaling import Producer, is_free
from fewbit.frontends.onnx.simulation import Simulation
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.transforms.channel_digits import read_channels
from fewbit.transforms.link import Channels

#: Operators that may hand a factor of a channel on. Whether they do, Clip for instance, is for the proof to say.
_HAND_ON = frozenset(
    {
        "AveragePool", "Clip", "Concat", "Div", "Dropout", "Expand", "Flatten", "Gather", "GlobalAveragePool",
        "GlobalMaxPool", "Identity", "LeakyRelu", "MatMul", "MaxPool", "Mul", "PRelu", "Pad", "ReduceMax", "ReduceMean",
        "ReduceSum", "Relu", "Reshape", "Slice", "Split", "Squeeze", "Transpose", "Unsqueeze",
    }
)  # fmt: skip
#: Operators that look at nothing but shapes.
_SHAPES = ("Shape", "Size")


@dataclass(frozen=True, slots=True)
class Path:
    """What lies between a producer and those who alone read it."""

    producer: Producer
    nodes: tuple[ir.Node, ...]
    consumers: tuple[GraphLayer, ...]

    @classmethod
    def behind(cls, producer: Producer, layers: Mapping[int, GraphLayer]) -> Path | None:
        """Return the path behind `producer`; `None`: something reads it that is no layer, or hands no factor on."""
        graph, nodes, found = producer.nodes[0].graph, {}, {}
        waiting = [producer.result]
        while waiting:
            value = waiting.pop()
            if value.is_graph_output():
                return None
            for node, index in value.uses():
                own = layers.get(id(node))
                if node.op_type in _SHAPES:
                    continue
                if node.graph is not graph:
                    return None
                if own is not None and index == own.data_index and is_free(own):
                    found[id(node)] = own
                elif own is not None or not _hands_on(node, index):
                    return None
                elif id(node) not in nodes:
                    nodes[id(node)] = node
                    waiting += node.outputs
        return cls(producer, tuple(nodes.values()), tuple(found.values())) if found else None

    def needs(self) -> list[str]:
        """Return the names of the values that everything from the producer to its readers takes from elsewhere."""
        whole = (*self.producer.nodes, *self.nodes, *(own.node for own in self.consumers))
        return _outer(whole)

    def channels(self, simulation: Simulation, values: Mapping[str, Numbers]) -> Channels | None:
        """Return which channel each input of the consumers is, -1: none; `None`: that they do not agree on.

        `values` hold the numbers of `needs` and of the producer's result for a batch, of which the shapes count.
        """
        draw, name = np.random.default_rng(0), self.producer.result.name or ""
        given = {own: _positive(values[own], draw) for own in (name, *_outer(self.nodes)) if own}
        outputs = {own.data.name or "": own for own in self.consumers}
        made = [own for own in outputs if own not in given]
        places = sorted(simulation.flow.places[id(node)] for node in self.nodes)
        session = simulation.session(places, given, made) if made else None
        size, axis = given[name].shape[self.producer.axis], self.producer.axis

        def run(exponents: Numbers) -> dict[str, Numbers]:
            marked = {**given, name: _multiplied(given[name], exponents, axis)}
            seen = {**marked, **(session.run(marked) if session else {})}
            return {own: _rows(layer, seen[own]) for own, layer in outputs.items()}

        return read_channels(size, run)


def _hands_on(node: ir.Node, index: int) -> bool:
    if node.domain not in ("", "ai.onnx") or node.op_type not in _HAND_ON:
        return False
    return index == 0 or node.op_type in ("Concat", "MatMul", "Mul")


def _outer(nodes: tuple[ir.Node, ...]) -> list[str]:
    """Return the names of what nodes read that they do not make, constants left out."""
    made = {id(value) for node in nodes for value in node.outputs}
    read = {value.name: value for node in nodes for value in node.inputs if value is not None}
    return [str(name) for name, value in read.items() if id(value) not in made and not value.is_initializer()]


def _positive(values: Numbers, draw: np.random.Generator) -> Numbers:
    """Return numbers from 1 to 2 of the same shape; what is no float stays."""
    if values.dtype.kind != "f":
        return values
    drawn: Numbers = np.asarray(draw.uniform(1.0, 2.0, values.shape))
    return drawn.astype(values.dtype)


def _multiplied(values: Numbers, exponents: Numbers, axis: int) -> Numbers:
    shape = [1] * values.ndim
    shape[axis] = -1
    multiplied: Numbers = values * np.exp2(exponents).astype(values.dtype).reshape(shape)
    return multiplied


def _rows(own: GraphLayer, values: Numbers) -> Numbers:
    """Return an input as (rows, channels)."""
    last = np.moveaxis(values, 1, -1) if isinstance(own.arrangement, Kernel) else values
    return last.reshape(-1, last.shape[-1])
