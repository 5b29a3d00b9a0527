"""Which values between layers are rounded too, so that a runtime keeps integers from one layer to the next.

A value can be had in integers if a layer rounds it, a layer makes it, or an operator that carries integers makes it of
such; it is rounded where the runtime needs that, or where what reads it runs in integers then. Each node is seen twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import onnx_ir as ir

from fewbit.formats.integer import UINT8
from fewbit.interfaces import QuantizedLayer
from fewbit.onnx_graph.attention import find_products
from fewbit.onnx_graph.constants import is_constant
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.limits import limits_of
from fewbit.onnx_graph.live import OnnxModel
from fewbit.ranges.absmax import AbsMax
from fewbit.runtimes.runtime import Runtime
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True, kw_only=True)
class Placement:
    """Roundings by the name of the value; a layer that reads one of these takes its input's rounding from here."""

    #: Static schemes, per tensor, in the order of the graph.
    values: dict[str, Scheme]
    #: Those that need one scale and zero point in common: two or more each.
    groups: tuple[tuple[str, ...], ...]


def place(model: OnnxModel, quantized: Iterable[QuantizedLayer], runtime: Runtime) -> Placement:
    """Return what is to be rounded beside the inputs of layers, for those of `quantized` that run in few bits.

    Inputs of layers are among the values where integers flow to them. Their scheme may be another one than the layer
    names: behind a Relu the lowest code stands for 0.
    """
    drawing = _Drawing(model, runtime)
    for own in quantized:
        # A skip is rounded beside a float8 convolution too.
        if own.input is not None and own.input.static and (runtime.skip_inputs or runtime.computes_in_integers(own)):
            drawing.add(model.found[own.layer.name], own.input)
    if runtime.takes_outputs:
        drawing.add_products()
    if runtime.skip_inputs:
        drawing.round_skips()
    else:
        drawing.look_ahead()
        drawing.round_outputs()
        drawing.look_back()
    return drawing.placement()


@dataclass(slots=True)
class _Drawing:
    """A graph while values are marked in it, by identity."""

    model: OnnxModel
    runtime: Runtime
    #: Layers that run in integers, by their node, and the values that they round.
    layers: dict[int, GraphLayer] = field(default_factory=dict)
    inputs: dict[int, Scheme] = field(default_factory=dict)
    #: Products inside attention that run in integers and give what goes on to a layer, and what rounds their operands.
    products: dict[int, Scheme] = field(default_factory=dict)
    operands: dict[int, Scheme] = field(default_factory=dict)
    #: What can be had in integers, by which scheme.
    available: dict[int, Scheme] = field(default_factory=dict)
    #: What a layer or carrier makes: a Relu behind it vanishes in the rounding.
    made: set[int] = field(default_factory=set)
    #: What is to be had in integers: rounded itself, or by the Relu behind it.
    wanted: set[int] = field(default_factory=set)
    within: set[int] = field(default_factory=set)
    #: What is to be rounded, and the value that it shares its scale with.
    marked: dict[int, Scheme] = field(default_factory=dict)
    shared: dict[int, int] = field(default_factory=dict)

    def add(self, own: GraphLayer, scheme: Scheme) -> None:
        """Take in a layer whose input is rounded by `scheme`."""
        self.layers[id(own.node)] = own
        self.inputs[id(own.data)] = self.available[id(own.data)] = scheme
        self.wanted.add(id(own.data))

    def add_products(self) -> None:
        """Take in the products whose operands have fixed ranges; scores stay float on their way to a Softmax."""
        for own in find_products(self.model.graph) if self.model.products else ():
            for operand, given in self.model.products.get(own.layer.name, {}).items():
                if given.scheme.static and self.runtime.multiplies_in_integers(given.scheme):
                    key = id(own.value(operand))
                    self.operands[key] = self.available[key] = given.scheme
                    self.wanted.add(key)
                    if operand == "value":
                        self.products[id(own.node)] = given.scheme

    def look_ahead(self) -> None:
        """Find what can be had in integers."""
        for node in self.model.graph.graph:
            if id(node) in self.layers:
                own = self.layers[id(node)]
                self.available.setdefault(id(own.result), self.available[id(own.data)])
                self.made.add(id(own.result))
            elif id(node) in self.products:
                self.available.setdefault(id(node.outputs[0]), self.products[id(node)])
                self.made.add(id(node.outputs[0]))
            elif self._vanishes(node) or self._carries(node):
                for value in node.outputs:
                    self.available.setdefault(id(value), self.available[id(node.inputs[0])])
                if node.op_type in self.runtime.carriers:
                    self.made.add(id(node.outputs[0]))

    def round_outputs(self) -> None:
        """Mark what layers make where they would stay float without."""
        runtime = self.runtime
        for own in self.layers.values():
            behind = next((node for node, _ in own.result.uses() if self._vanishes(node)), None)
            if (
                behind is not None
                and own.node.op_type in runtime.products_with_output | runtime.products_with_activation
            ):
                self._mark(behind.outputs[0])
            elif own.node.op_type in runtime.products_with_output:
                self._mark(own.result)

    def look_back(self) -> None:
        """Mark what goes in and out of operators that can run in integers and whose output is wanted so."""
        for node in reversed(self.model.graph.graph):
            wanted = [value for value in node.outputs if id(value) in self.wanted]
            if wanted and self._vanishes(node):
                self._mark(node.outputs[0])
                self.within.add(id(node.inputs[0]))
            elif self._carries(node) and (wanted or id(node.outputs[0]) in self.within):
                for value in (*wanted, *self._data(node)):
                    self._mark(value)
                if node.op_type in self.runtime.movers:
                    for value in _used(node):
                        self._mark(value)
                        self.shared[self._root(id(value))] = self._root(id(node.inputs[0]))

    def round_skips(self) -> None:
        """Mark the shorter way into each Add behind a convolution, so that the convolution takes in the Add."""
        depth: dict[int, int] = {}
        ends = {id(own.result): own for own in self.layers.values() if own.layer.kind == "conv"}
        for node in self.model.graph.graph:
            deepest = max((depth.get(id(value), 0) for value in node.inputs if value is not None), default=0)
            depth.update((id(value), deepest + (id(node) in self.layers)) for value in node.outputs)
            data = [value for value in node.inputs if value is not None and not is_constant(value)]
            if node.op_type != "Add" or node.domain or len(data) != 2:
                continue
            ways = [value for value in data if id(value) in ends and _read_once(value)]
            way = max(ways, key=lambda value: depth.get(id(value), 0), default=None)
            if way is not None:
                skip = data[1] if way is data[0] else data[0]
                self.available.setdefault(id(skip), self.inputs[id(ends[id(way)].data)])
                self._mark(skip)

    def placement(self) -> Placement:
        """Return what was marked."""
        graph = self.model.graph.graph
        groups: dict[int, list[ir.Value]] = {}
        for value in (*graph.inputs, *(value for node in graph for value in node.outputs)):
            if id(value) in self.marked:
                groups.setdefault(self._root(id(value)), []).append(value)
        values: dict[str, Scheme] = {}
        for group in groups.values():
            own = [self.marked[id(value)] for value in group]
            # One zero point at the lowest code is one for all.
            scheme = next((scheme for scheme in own if not scheme.symmetric), own[0])
            made = any(value.producer() is not None and id(value.producer()) in self.products for value in group)
            # A product has the range that was asked for; what it makes that of the layer it goes to.
            asked = self.inputs | self.operands if made else self.operands
            scheme = next((asked[id(value)] for value in group if id(value) in asked), scheme)
            values.update((str(value.name), scheme) for value in group)
        return Placement(
            values=values,
            groups=tuple(tuple(str(value.name) for value in group) for group in groups.values() if len(group) > 1),
        )

    def _mark(self, value: ir.Value) -> None:
        self.wanted.add(id(value))
        scheme, maker = self.available[id(value)], value.producer()
        if maker is not None and self._vanishes(maker):
            scheme = _from_lowest(scheme)
        self.marked.setdefault(id(value), scheme)

    def _vanishes(self, node: ir.Node) -> bool:
        """Whether a rounding behind `node` can do in its place what it does to the product before it."""
        if node.op_type not in self.runtime.absorbed or limits_of(node) is None:
            return False
        source = node.inputs[0]
        return source is not None and id(source) in self.made and _read_once(source)

    def _carries(self, node: ir.Node) -> bool:
        """Whether `node` takes and gives integers, if its output is rounded."""
        known = node.op_type in self.runtime.carriers | self.runtime.movers and node.domain in ("", "ai.onnx")
        if not known or id(node) in self.layers or (node.op_type != "Split" and len(_used(node)) != 1):
            return False
        return all(id(value) in self.available for value in self._data(node))

    def _data(self, node: ir.Node) -> list[ir.Value]:
        """Return what goes in as numbers: all inputs of a carrier, the first of a mover."""
        inputs = node.inputs if node.op_type in self.runtime.carriers else node.inputs[:1]
        return [value for value in inputs if value is not None]

    def _root(self, key: int) -> int:
        """Return the value that stands for those that share a scale with value `key`."""
        root = key
        while root in self.shared and self.shared[root] != root:
            root = self.shared[root]
        while key != root:
            self.shared[key], key = root, self.shared[key]
        return root


def _from_lowest(scheme: Scheme) -> Scheme:
    """Return a scheme under which the lowest code stands for 0 where no number is negative."""
    if not scheme.symmetric or scheme.format == UINT8:
        return scheme
    return replace(scheme, symmetric=False, range_method=None if scheme.ranging == AbsMax() else scheme.ranging)


def _read_once(value: ir.Value) -> bool:
    return len(value.uses()) == 1 and not value.is_graph_output()


def _used(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.outputs if value.uses() or value.is_graph_output()]
