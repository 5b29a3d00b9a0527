"""Means of the rows that layers of a graph are given, from what BatchNormalizations say: followed from node to node.

What a norm puts out is normal; Relu and Clip cut it, sums of two add, averages and reshapes hand it on. A row of a Conv
is a patch, at the border with zeros: its mean is that of the patches of an input that is constant.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.frontends.onnx.batches import feeds_of
from fewbit.frontends.onnx.constant import numbers_of
from fewbit.frontends.onnx.flow import Flow
from fewbit.frontends.onnx.norm_folding import is_norm, norm_numbers
from fewbit.frontends.onnx.patches import Window
from fewbit.frontends.onnx.random_inputs import random_inputs
from fewbit.frontends.onnx.relu6 import clip_bounds
from fewbit.frontends.onnx.sizes import shapes_of
from fewbit.known_output import KnownOutput, joined, regrouped
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.constants import is_constant
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.statistics.mean import Mean

#: What is known of a value, and the axis of its channels.
_Known = tuple[KnownOutput, int]


def known_inputs(
    model: OnnxModel, names: Collection[str], outputs: Mapping[str, KnownOutput], batch: Any
) -> dict[str, Mean]:
    """Return the means of the rows of those layers in `names` whose inputs come from norms; of the others nothing.

    `outputs` are those of layers that norms were folded into; norms that stand in the graph say themselves.
    """
    graph = model.graph.graph
    feeds = feeds_of(graph, random_inputs(graph) if batch is None else batch)
    shapes = shapes_of(model.graph, Flow.of(graph), feeds)
    layers = {id(own.result): own for own in model.found.values() if own.layer.name in outputs}
    known: dict[str, _Known] = {}
    for node in graph:
        result = node.outputs[0] if node.outputs else None
        own = layers.get(id(result))
        if result is None or result.name not in shapes:
            continue
        said = _of_layer(own, outputs, shapes) if own is not None else _of_node(node, known, shapes)
        if said is not None and shapes[result.name][said[1]] == said[0].width:
            known[result.name] = said
    found = {name: _row_means(model.found[name], known, shapes) for name in names}
    return {name: mean for name, mean in found.items() if mean is not None}


def _of_layer(own: GraphLayer, outputs: Mapping[str, KnownOutput], shapes: Mapping[str, Sequence[int]]) -> _Known:
    axis = 1 if isinstance(own.arrangement, Kernel) else len(shapes[own.result.name or ""]) - 1
    return outputs[own.layer.name], axis


def _row_means(own: GraphLayer, known: Mapping[str, _Known], shapes: Mapping[str, Sequence[int]]) -> Mean | None:
    """Return the means of the rows of a layer, `None` where the channels are not along the axis that it reads."""
    name, kernel = own.data.name or "", own.arrangement
    if name not in known:
        return None
    output, axis = known[name]
    if not isinstance(kernel, Kernel):
        rows: Any = [output.mean.reshape(1, -1)] if axis == len(shapes[name]) - 1 else []
    else:
        shape = (1, -1, *[1] * (len(shapes[name]) - 2))
        whole = np.broadcast_to(output.mean.reshape(shape), (1, *shapes[name][1:])) if axis == 1 else None
        window = Window.of(own.node, kernel.shape[2:], kernel.groups)
        rows = [] if whole is None else window.rows(whole)
    mean: Mean | None = None
    for piece in rows:
        mean = mean or Mean.init(piece.shape[-1], piece)
        mean.update(piece)
    return mean


@dataclass(frozen=True, slots=True)
class _Reading:
    """A node with what is known of its inputs and the shapes of values."""

    node: ir.Node
    given: Sequence[_Known | None]
    shapes: Mapping[str, Sequence[int]]

    def shape(self, value: ir.Value | None) -> Sequence[int]:
        return self.shapes.get((value.name if value is not None else None) or "", ())

    def ints(self, name: str) -> Sequence[int]:
        return self.node.attributes[name].as_ints() if name in self.node.attributes else ()

    def number(self, name: str, otherwise: int) -> int:
        return self.node.attributes[name].as_int() if name in self.node.attributes else otherwise


def _of_node(node: ir.Node, known: Mapping[str, _Known], shapes: Mapping[str, Sequence[int]]) -> _Known | None:
    """Return what is known of what a node makes."""
    if is_norm(node) and all(is_constant(value) for value in node.inputs[1:5]):
        return norm_numbers(node).output(), 1
    operator = _OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    given = [known.get(value.name or "") if value is not None else None for value in node.inputs]
    return operator(_Reading(node, given, shapes)) if operator and any(given) else None


def _cut(reading: _Reading, low: float | None = None, high: float | None = None) -> _Known | None:
    given = reading.given[0]
    if reading.node.op_type == "Clip":
        low, high = clip_bounds(reading.node)
    output = given[0].clipped(low, high) if given and low is not None and high is not None else None
    return (output, given[1]) if output is not None and given else None


def _sum(reading: _Reading) -> _Known | None:
    if len(reading.given) != 2 or len({tuple(reading.shape(value)) for value in reading.node.inputs}) != 1:
        return None
    one, other = reading.given
    return (one[0].added(other[0]), one[1]) if one and other and one[1] == other[1] else None


def _same(reading: _Reading) -> _Known | None:
    return reading.given[0]


def _average(reading: _Reading) -> _Known | None:
    padded = any(reading.ints("pads")) or "auto_pad" in reading.node.attributes
    given = reading.given[0]
    counted = padded and reading.number("count_include_pad", 0)
    return (given[0].averaged(), given[1]) if given and not counted else None


def _mean(reading: _Reading) -> _Known | None:
    given, node = reading.given[0], reading.node
    listed: Any = reading.ints("axes")
    if len(node.inputs) > 1 and is_constant(node.inputs[1]):
        listed = numbers_of(node.inputs[1]).tolist()
    rank = len(reading.shape(node.inputs[0]))
    axes = {axis % rank for axis in listed} if rank else set()
    if given is None or not axes or given[1] in axes:
        return None
    before = 0 if reading.number("keepdims", 1) else sum(axis < given[1] for axis in axes)
    return given[0].averaged(), given[1] - before


def _moved(reading: _Reading) -> _Known | None:
    given, shapes = reading.given[0], [reading.shape(own) for own in (reading.node.inputs[0], reading.node.outputs[0])]
    place = regrouped(shapes[0], given[1], shapes[1]) if given and all(shapes) else None
    return (given[0].repeated(place[1]), place[0]) if given and place else None


def _joined(reading: _Reading) -> _Known | None:
    known = [own for own in reading.given if own is not None]
    axis = reading.number("axis", 0) % max(1, len(reading.shape(reading.node.outputs[0])))
    if len(known) < len(reading.given) or any(own[1] != axis for own in known):
        return None
    return joined([own[0] for own in known]), axis


_OPERATORS: Mapping[str, Callable[[_Reading], _Known | None]] = {
    "Relu": partial(_cut, low=0.0, high=float("inf")), "Clip": _cut, "Add": _sum, "Sum": _sum, "Identity": _same,
    "Dropout": _same, "Cast": _same, "AveragePool": _average, "GlobalAveragePool": _average, "ReduceMean": _mean,
    "Reshape": _moved, "Flatten": _moved, "Squeeze": _moved, "Unsqueeze": _moved, "Concat": _joined,
}  # fmt: skip
