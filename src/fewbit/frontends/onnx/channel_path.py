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
#: What the digits of a channel become; none is 0, which is what a channel has that the producer does not reach.
_EXPONENTS = np.asarray([-4, -3, -2, -1, 1, 2, 3, 4])
#: Roundings by which a number may differ from its multiple.
_ROUNDINGS = 8.0


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
            return {**marked, **(session.run(marked) if session else {})}

        plain, found = run(np.zeros(size)), dict.fromkeys(outputs, 0)
        lost = dict.fromkeys(outputs, False)
        for place in range(max(1, (max(size - 1, 1).bit_length() + 2) // 3)):
            seen = run(_EXPONENTS[np.arange(size) // 8**place % 8])
            for own, layer in outputs.items():
                exponents = _exponents(_rows(layer, plain[own]), _rows(layer, seen[own]))
                if exponents is None:
                    return None
                lost[own] = lost[own] | (exponents == 0)
                found[own] = found[own] + np.searchsorted(_EXPONENTS, exponents) * 8**place
        read = [np.where(lost[own] | (found[own] >= size), -1, found[own]).astype(np.int64) for own in outputs]
        same = all(np.array_equal(own, read[0]) for own in read)
        return read[0] if same and read[0].max() >= 0 else None


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


def _exponents(plain: Numbers, seen: Numbers) -> Numbers | None:
    """Return by which power of two each column has grown, 0 for one of zeros; `None`: by something else."""
    before, after = (np.abs(own).max(axis=0).astype(np.float64) for own in (plain, seen))
    live = (before > 0) & (after > 0)
    exponents: Numbers = np.rint(np.log2(np.where(live, after, 1.0) / np.where(live, before, 1.0)))
    expected = plain * np.exp2(exponents).astype(plain.dtype)
    near = np.abs(seen - expected) <= _ROUNDINGS * np.finfo(plain.dtype).eps * np.abs(expected)
    known = np.isin(exponents, (0, *_EXPONENTS))
    return exponents.astype(np.int64) if bool(near.all() and known.all()) else None
