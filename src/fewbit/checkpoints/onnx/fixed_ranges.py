"""Ranges between layers that are fixed already: a value has that of the layers which read it, and nothing else does.

So a file computes with the very ranges that a model was trained, or calibrated, with. Values that share a scale, as
around a MaxPool, take it together.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from fewbit.activation import Activation
from fewbit.numerics.namespace import to_numpy
from fewbit.onnx_graph.live import OnnxModel
from fewbit.onnx_graph.placement import Placement


def fixed_ranges(model: OnnxModel, placement: Placement) -> dict[str, Activation]:
    """Return the roundings, by value, of those that are placed and fixed."""
    graph = model.graph.graph
    named = {str(value.name): value for node in graph for value in node.outputs}
    named |= {str(value.name): value for value in graph.inputs}
    readers = _readers(model)
    found: dict[str, Activation] = {}
    grouped = {name for group in placement.groups for name in group}
    for group in (*placement.groups, *((name,) for name in placement.values if name not in grouped)):
        own = _shared([named[name] for name in group], readers)
        if own is not None and own.scheme.grid == placement.values[group[0]].grid:
            found |= dict.fromkeys(group, own)
    return found


def _readers(model: OnnxModel) -> dict[int, Activation]:
    """Return the static rounding of each layer's input, by the node of the layer."""
    given = {id(model.found[name].node): own.activations.input for name, own in model.layers.items()}
    return {node: own for node, own in given.items() if own is not None and own.scale is not None}


def _shared(group: Sequence[ir.Value], readers: Mapping[int, Activation]) -> Activation | None:
    """Return the rounding of all layers that read values of a group, if it is one and nothing else reads them."""
    inside = {id(value) for value in group}
    own: Activation | None = None
    for value in group:
        if value.is_graph_output():
            return None
        for node in _users(value):
            reader = readers.get(id(node))
            if reader is None and not all(id(output) in inside for output in node.outputs):
                return None
            if reader is not None and own is not None and not _same(own, reader):
                return None
            own = own or reader
    return own


def _users(value: ir.Value) -> Iterator[ir.Node]:
    return (node for node, _ in value.uses())


def _same(one: Activation, other: Activation) -> bool:
    pairs = ((one.scale, other.scale), (one.zero_point, other.zero_point))
    return one.scheme.grid == other.scheme.grid and all(
        (a is None and b is None) or (a is not None and b is not None and np.array_equal(to_numpy(a), to_numpy(b)))
        for a, b in pairs
    )
