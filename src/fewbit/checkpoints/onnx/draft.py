"""A graph on its way to a file: a copy of the float one in which nodes are put in and values get new readers.

Names are looked up in dictionaries, so that the work is linear in the nodes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.activation import Activation
from fewbit.onnx_graph.attention import GraphProduct
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.runtimes.runtime import Runtime

#: What follows the name of a layer in the name of its codes.
CODES = ".codes"
Attributes = Mapping[str, int | ir.Attr]


@dataclass(slots=True)
class Draft:
    """The copy, what is known of it, and what there is to say of it afterwards."""

    model: ir.Model
    layers: dict[str, GraphLayer]
    #: The products inside attention that are rounded.
    products: dict[str, GraphProduct]
    runtime: Runtime
    #: The type of values that the graph says nothing of.
    dtype: ir.DataType
    #: Values of the main graph and of those inside it, by name.
    values: dict[str, ir.Value]
    #: What was done that nobody asked for, or that the reader of the file has to know.
    notes: list[str] = field(default_factory=list)
    #: By how much the scales of layers grew at most so that their biases fit int32.
    grown: dict[str, float] = field(default_factory=dict)
    #: Layers whose int8 weights are stored as uint8.
    unsigned: frozenset[str] = frozenset()
    #: What rounded the values that are rounded for all who read them.
    given: dict[int, Activation] = field(default_factory=dict)
    #: Values rounded for the layers that want them so, by value and parameters.
    pairs: dict[tuple[Any, ...], ir.Value] = field(default_factory=dict)
    #: Roundings of inputs to the range of the moment: codes, scale, zero point.
    moments: dict[int, tuple[ir.Value, ir.Value, ir.Value]] = field(default_factory=dict)

    def constant(self, name: str, numbers: np.ndarray[Any, Any], *, near: ir.Node | None = None) -> ir.Value:
        """Return a new initializer, in the graph of the node `near` or else the main one."""
        return self.constant_of(name, ir.Tensor(numbers), near=near)

    def codes(self, own: GraphLayer, numbers: np.ndarray[Any, Any]) -> ir.Value:
        """Return the initializer that holds the codes of a layer; `fusion` knows the layer by it."""
        return self.constant(f"{own.layer.name}{CODES}", numbers, near=own.node)

    def constant_of(self, name: str, tensor: ir.TensorProtocol, *, near: ir.Node | None = None) -> ir.Value:
        """Return a new initializer that holds `tensor`."""
        name = self.fresh(name)
        if tensor.name != name:
            tensor.name = name
        value = ir.Value(
            name=name, type=ir.TensorType(tensor.dtype), shape=ir.Shape(tensor.shape.numpy()), const_value=tensor
        )
        graph = near.graph if near is not None else self.model.graph
        assert isinstance(graph, ir.Graph)
        graph.register_initializer(value)
        self.values[str(value.name)] = value
        return value

    def node(
        self,
        op_type: str,
        inputs: Sequence[ir.Value | None],
        names: str | Sequence[str],
        attributes: Attributes | None = None,
        *,
        domain: str = "",
    ) -> ir.Node:
        """Return a new node, in no graph yet, whose outputs are called `names`."""
        names = [names] if isinstance(names, str) else names
        # Asked this way round, since `ir.Attr` is a protocol, and slow to ask for.
        told = [ir.AttrInt64(name, own) if isinstance(own, int) else own for name, own in (attributes or {}).items()]
        node = ir.Node(domain, op_type, inputs, told, num_outputs=len(names))
        for value, name in zip(node.outputs, names, strict=True):
            value.name = self.fresh(name)
            self.values[value.name] = value
        node.name = f"{node.outputs[0].name}/{op_type}"
        if domain:
            self.model.graph.opset_imports.setdefault(domain, 1)
        return node

    def put_after(self, value: ir.Value, nodes: Sequence[ir.Node]) -> None:
        """Put nodes behind what makes `value`, or at the beginning where it is an input or a constant."""
        maker = value.producer()
        if maker is not None:
            assert isinstance(maker.graph, ir.Graph)
            maker.graph.insert_after(maker, nodes)
            return
        graph = value.graph if isinstance(value.graph, ir.Graph) else self.model.graph
        graph.insert_before(next(iter(graph)), nodes)

    def put_before(self, node: ir.Node, nodes: Sequence[ir.Node]) -> None:
        """Put nodes before `node`."""
        assert isinstance(node.graph, ir.Graph)
        node.graph.insert_before(node, nodes)

    def replace(self, old: ir.Value, new: ir.Value, *, but: ir.Node | None = None) -> None:
        """Let every reader of `old`, except the node `but`, read `new`, which takes over its name if callers see it."""
        for node, place in list(old.uses()):
            if node is not but:
                node.replace_input_with(place, new)
        if not old.is_graph_output():
            return
        new.type, new.shape, name = old.type, old.shape, str(old.name)
        graph = old.graph
        assert isinstance(graph, ir.Graph)
        for place, value in enumerate(graph.outputs):
            if value is old:
                graph.outputs[place] = new
        old.name = self.fresh(f"{name}/float")
        self.values[old.name] = old
        new.name, self.values[name] = name, new

    def remove(self, node: ir.Node) -> None:
        """Take out a node that nothing reads any more."""
        assert isinstance(node.graph, ir.Graph)
        node.graph.remove(node, safe=True)

    def fresh(self, name: str) -> str:
        """Return `name`, with a number behind it where it is taken."""
        made, number = name, 1
        while made in self.values:
            number += 1
            made = f"{name}_{number}"
        return made


def values_of(model: ir.Model) -> dict[str, ir.Value]:
    """Return every value of `model`, those inside of branches and loops too, by name."""
    found: dict[str, ir.Value] = {}
    for graph in model.graphs():
        for value in (*graph.inputs, *graph.initializers.values()):
            found[str(value.name)] = value
        for node in graph:
            found.update((str(value.name), value) for value in node.outputs)
    return found
