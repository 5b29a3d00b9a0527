"""The residual stream of a graph: every value that norms read, back to what writes it and on to what else reads it.

A norm is one operator, or Pow, ReduceMean, Sqrt and Div before a product with a constant vector, its gain, which feeds
linear layers alone. Whatever the stream meets that is no sum, move, writer or norm is a reason to leave it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from fewbit.errors import FewbitError
from fewbit.frontends.onnx.channel_scaling import is_free
from fewbit.frontends.onnx.constant import numbers_of
from fewbit.frontends.onnx.links import Fold
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.constants import is_constant
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import OnnxModel

#: Norms that are one operator, and whether they take the mean off.
_NORMS = {"LayerNormalization": True, "RMSNormalization": False, "SimplifiedLayerNormalization": False}
#: Operators that a norm may be made of.
_PARTS = frozenset(
    {"Add", "Cast", "Div", "Max", "Mul", "Pow", "Reciprocal", "ReduceL2", "ReduceMean", "ReduceSum", "ReduceSumSquare",
     "Sqrt", "Sub"}
)  # fmt: skip
#: Operators whose output is a sum of inputs, or holds each of them.
_SUMS = frozenset({"Add", "Concat", "Sub", "Sum"})
#: Operators that move numbers of their first input; that channels stay together is for the proof to say.
_MOVES = frozenset(
    {"Cast", "Dropout", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Reshape", "Resize",
     "Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"}
)  # fmt: skip
#: Operators that look at nothing but shapes.
_SHAPES = ("Shape", "Size")


class StreamError(FewbitError):
    """Why the stream of a graph cannot be rotated."""


@dataclass(frozen=True, slots=True)
class StreamNorm:
    """A norm that reads the stream, and the layers behind its gain."""

    fold: Fold
    #: What it reads.
    entry: ir.Value
    #: The nodes that it is made of, by identity.
    nodes: frozenset[int]
    #: Whether it takes the mean off.
    centred: bool

    @classmethod
    def of(cls, fold: Fold) -> StreamNorm | None:
        """Return the norm whose gain is the producer of `fold`; `None`: something else multiplies there."""
        first = fold.producer.nodes[0]
        own = frozenset(id(node) for node in fold.producer.nodes)
        if first.op_type != "Mul":
            entry = first.inputs[0]
            known = first.op_type in _NORMS and entry is not None
            return cls(fold, entry, own, _NORMS[first.op_type]) if known and entry is not None else None
        normed = next(value for value in first.inputs if value is not None and not is_constant(value))
        found = _entry(normed)
        if found is None:
            return None
        inside = _between(normed, found[0])
        return cls(fold, found[0], own | inside, found[1]) if inside else None


def _entry(normed: ir.Value) -> tuple[ir.Value, bool] | None:
    """Return what a norm of several operators reads, and whether it takes the mean off."""
    node = normed.producer()
    while node is not None and node.op_type == "Cast":
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.op_type not in ("Div", "Mul"):
        return None
    upper, lower = node.inputs[0], node.inputs[1]
    if node.op_type == "Mul" and _is_inverse(upper):
        upper, lower = lower, upper
    if upper is None or lower is None or is_constant(upper) or is_constant(lower):
        return None
    maker = upper.producer()
    centring = maker.inputs[1].producer() if maker and maker.op_type == "Sub" and maker.inputs[1] else None
    if maker and centring and centring.op_type == "ReduceMean" and centring.inputs[0] is maker.inputs[0]:
        assert maker.inputs[0] is not None
        return maker.inputs[0], True
    return upper, False


def _is_inverse(value: ir.Value | None) -> bool:
    node = value.producer() if value is not None else None
    return node is not None and (
        node.op_type in ("Reciprocal", "Pow") or (node.op_type == "Div" and is_constant(node.inputs[0]))
    )


def _between(end: ir.Value, start: ir.Value) -> frozenset[int]:
    """Return the nodes from `start` to `end`, by identity; none where `end` depends on anything else."""
    waiting, found = [end], dict[int, ir.Node]()
    while waiting:
        value = waiting.pop()
        node = value.producer()
        if value is start or is_constant(value) or (node is not None and id(node) in found):
            continue
        if node is None or node.op_type not in _PARTS:
            return frozenset()
        found[id(node)] = node
        waiting += [own for own in node.inputs if own is not None]
    return frozenset(found)


@dataclass(slots=True)
class ResidualStream:
    """What reads and writes the stream of one width."""

    width: int
    norms: list[StreamNorm]
    #: Layers that read it without a norm.
    readers: list[GraphLayer] = field(default_factory=list)
    writers: list[GraphLayer] = field(default_factory=list)
    #: A node with the place of a constant that is added, and its axis: a bias, positions, the token of a class.
    constants: list[tuple[ir.Node, int, int]] = field(default_factory=list)
    #: A node with the place of a factor for each channel of what a layer writes, and that layer.
    scales: list[tuple[ir.Node, int, GraphLayer]] = field(default_factory=list)
    _layers: Mapping[int, GraphLayer] = field(default_factory=dict)
    _results: Mapping[int, GraphLayer] = field(default_factory=dict)
    _seen: dict[int, ir.Value] = field(default_factory=dict)
    _waiting: list[ir.Value] = field(default_factory=list)

    @classmethod
    def of(cls, model: OnnxModel, folds: Sequence[Fold]) -> ResidualStream:
        """Return the stream that the norms of `folds` read, of the width that most of them have.

        Raises:
            StreamError: there is none, or something reads or writes it that cannot be turned.

        """
        norms = [norm for fold in folds if (norm := StreamNorm.of(fold)) is not None]
        widths = Counter(norm.fold.link.outputs for norm in norms)
        if not widths:
            raise StreamError("no norm feeds linear layers alone")
        width = widths.most_common(1)[0][0]
        norms = [norm for norm in norms if norm.fold.link.outputs == width]
        layers = {id(own.node): own for own in model.found.values()}
        results = {id(own.result): own for own in model.found.values()}
        stream = cls(width, norms, _layers=layers, _results=results)
        for norm in norms:
            read = norm.fold.link.channels
            kernels = [own for own in norm.fold.consumers if _groups(own) > 1]
            if kernels:
                raise StreamError(f"{kernels[0].layer.name} reads it, and is a convolution of several groups")
            if len(read) % width or (read.reshape(-1, width) != np.arange(width)).any():
                raise StreamError(f"{norm.fold.link.consumers[0]} reads the channels in another order")
            stream._visit(norm.entry)
        while stream._waiting:
            value = stream._waiting.pop()
            stream._back(value)
            stream._on(value)
        return stream

    @property
    def centred(self) -> bool:
        """Whether a norm takes the mean off."""
        return any(norm.centred for norm in self.norms)

    def _visit(self, value: ir.Value) -> None:
        if id(value) not in self._seen:
            self._seen[id(value)] = value
            self._waiting.append(value)

    def _back(self, value: ir.Value) -> None:
        """Look at what makes a value of the stream."""
        node = value.producer()
        if node is None:
            raise StreamError(f"{value.name} is an input of the graph")
        own = self._layers.get(id(node))
        if own is not None:
            self._write(own, node)
        elif node.op_type in _SUMS:
            for place, given in enumerate(node.inputs):
                self._take(node, place, given)
        elif node.op_type in _MOVES:
            self._take(node, 0, node.inputs[0])
        elif (factor := _factor(node)) is not None:
            self._scaled(node, factor)
        else:
            raise StreamError(f"{_called(node)} writes it")

    def _on(self, value: ir.Value) -> None:
        """Look at what reads a value of the stream."""
        if value.is_graph_output():
            raise StreamError(f"{value.name} is an output of the graph")
        for node, place in value.uses():
            own = self._layers.get(id(node))
            if node.op_type in _SHAPES or any(id(node) in norm.nodes for norm in self.norms):
                continue
            if own is not None and place == own.data_index and _reads(own, self.width):
                self.readers += [own] if own not in self.readers else []
            elif own is None and (node.op_type in _SUMS or _factor(node) is not None):
                self._visit(node.outputs[0])
            elif own is None and node.op_type in _MOVES and place == 0:
                for made in node.outputs:
                    self._visit(made)
            else:
                raise StreamError(f"{_called(node)} reads it, and is no norm in front of linear layers alone")

    def _write(self, own: GraphLayer, node: ir.Node) -> None:
        layer = own.layer
        if layer.shape[1 if layer.kind == "embedding" else 0] != self.width:
            raise StreamError(f"{layer.name} writes it, and has {layer.shape[0]} outputs, not {self.width}")
        if layer.tied:
            raise StreamError(f"{layer.name} writes it, and shares its weight with {layer.tied[0]}")
        if _groups(own) > 1:
            raise StreamError(f"{layer.name} writes it, and is a convolution of several groups")
        self.writers.append(own)
        if len(node.inputs) > 2 and node.inputs[2] is not None:
            self._take(node, 2, node.inputs[2])

    def _take(self, node: ir.Node, place: int, given: ir.Value | None) -> None:
        """Look at an input of a node in the stream."""
        if given is None:
            return
        if not is_constant(given):
            self._visit(given)
            return
        shape = numbers_of(given).shape
        axes = [axis for axis, size in enumerate(shape) if size == self.width]
        if axes and (len(axes) == 1 or axes[-1] == len(shape) - 1):
            self.constants.append((node, place, axes[-1]))
        else:
            told = "x".join(str(size) for size in shape) or "one number"
            raise StreamError(f"a constant of {told} is added to it by {_called(node)}")

    def _scaled(self, node: ir.Node, place: int) -> None:
        """Look at a product with a constant: one number, or one for each channel of what a layer writes."""
        given, size = node.inputs[1 - place], numbers_of(node.inputs[place]).size
        assert given is not None
        if size > 1:
            own = self._results.get(id(given))
            if own is None or size != self.width or node.op_type != "Mul" or len(given.uses()) > 1 or not is_free(own):
                raise StreamError(f"{_called(node)} multiplies channels of it by different numbers")
            self.scales.append((node, place, own))
        self._visit(given)


def _factor(node: ir.Node) -> int | None:
    """Return which input of a product, or of a quotient, is a constant."""
    places: Iterator[int] = (place for place in {"Mul": (0, 1), "Div": (1,)}.get(node.op_type, ()))
    return next((place for place in places if is_constant(node.inputs[place])), None)


def _reads(own: GraphLayer, width: int) -> bool:
    linear = own.node.op_type in ("MatMul", "Gemm")
    return linear and is_free(own) and own.layer.shape[1] == width


def _groups(own: GraphLayer) -> int:
    return own.arrangement.groups if isinstance(own.arrangement, Kernel) else 1


def _called(node: ir.Node) -> str:
    return f"{node.op_type} {node.name or node.outputs[0].name}"
