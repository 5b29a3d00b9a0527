"""Parts of a model as graphs of their own, in which installed layers compute what their codes stand for.

A quantized layer is its float operator on the dequantized weight, between the float operators that round its input and
its output. No integer operator and no QuantizeLinear is in it: what a runtime would fuse plays no part.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from fewbit.activation import Activation
from fewbit.frontends.onnx.alike import Alike, Sessions
from fewbit.frontends.onnx.flow import Flow, inner_graphs
from fewbit.frontends.onnx.nodes import Nodes, Numbers
from fewbit.frontends.onnx.rounding import Place, round_value
from fewbit.frontends.onnx.session import Session
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.attention import GraphProduct, find_products
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import OnnxModel, Rounded

#: A layer or a product with the quantized form that is compared with the float one.
Beside = tuple[GraphLayer, Rounded] | tuple[GraphProduct, Mapping[str, Activation]]


@dataclass(slots=True)
class _Writing:
    """A graph while it is written."""

    nodes: Nodes
    #: Names under which rounded inputs of the model are read.
    renamed: dict[str, str]


class Simulation:
    """What builds parts of one model; it sees the layers that are installed when a part is built."""

    def __init__(self, model: OnnxModel, layers: Mapping[str, Rounded] | None = None) -> None:
        """Take `model` as it is and will be, or with these `layers` in their quantized form."""
        self.model = model
        self.layers = model.layers if layers is None else layers
        self.flow = Flow.of(model.graph.graph)
        self._layers = {id(own.node): own for own in model.found.values()}
        self._adds = {id(own.bias_add): own for own in model.found.values() if own.bias_add is not None}
        self._results = {id(own.result): own for own in model.found.values()}
        self._products = {id(own.node): own for own in find_products(model.graph)} if model.products else {}
        self._opset = model.graph.opset_imports[""]
        self._sessions = Sessions()

    def session(
        self,
        places: Iterable[int],
        given: Mapping[str, Numbers],
        outputs: Sequence[str],
        beside: Sequence[Beside] = (),
    ) -> Session | Alike:
        """Return the nodes at `places`, in order, ready to run from values like `given` to `outputs`.

        Of what is `beside` the quantized form is compared with the float one: two further outputs each, see `_compare`.
        """
        writing = self._written(places, given)
        inputs = [_declared(name, own) for name, own in given.items()]
        compared = [name for pair in beside for name in self._compare(writing, pair)]
        proto, numbers = self._finished(writing, inputs, [*outputs, *compared])
        return self._sessions.session(proto, numbers, str(self.model.path), given.values())

    def whole(self) -> Session:
        """Return the whole model ready to run."""
        graph = self.model.graph.graph
        given = [value for value in graph.inputs if value.name not in graph.initializers]
        writing = self._written(range(len(self.flow.nodes)), [value.name or "" for value in given])
        inputs = [ir.serde.serialize_value(value) for value in given]
        proto, numbers = self._finished(writing, inputs, [value.name or "" for value in graph.outputs])
        return Session.of(proto, numbers, str(self.model.path))

    def _written(self, places: Iterable[int], inputs: Iterable[str]) -> _Writing:
        writing = _Writing(Nodes(self._opset), {})
        self._round_inputs(writing, inputs)
        for place in places:
            self._write(writing, self.flow.nodes[place])
        return writing

    def _finished(
        self, writing: _Writing, inputs: list[onnx.ValueInfoProto], outputs: Sequence[str]
    ) -> tuple[onnx.ModelProto, dict[str, Numbers]]:
        """Return a model, and the constants that it reads beside its own."""
        model, nodes = self.model.graph, writing.nodes
        graph = onnx.GraphProto(name=model.graph.name or "graph", node=nodes.protos, input=inputs)
        # onnxruntime finds the types itself.
        graph.output.extend(onnx.ValueInfoProto(name=name) for name in outputs)
        numbers = dict(nodes.numbers)
        for name in dict.fromkeys((*_named(nodes.protos), *outputs)):
            value = model.graph.initializers.get(name)
            if value is not None and value.const_value is not None:
                own = value.const_value.numpy() if value.const_value.dtype != ir.DataType.STRING else None
                if own is not None and own.dtype.isbuiltin != 2:  # 2: of ml_dtypes
                    numbers[name] = own
                else:
                    graph.initializer.append(_serialized(name, value.const_value))
        imports = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
        functions = [ir.serde.serialize_function(function) for function in model.functions.values()]
        proto = onnx.ModelProto(ir_version=model.ir_version, graph=graph, opset_import=imports, functions=functions)
        return proto, numbers

    def _round_inputs(self, writing: _Writing, names: Iterable[str]) -> None:
        """Round what enters the graph, where that is asked for by name."""
        inputs = {value.name: value for value in self.model.graph.graph.inputs}
        for name in names:
            if name in self.model.values and name in inputs:
                place = Place(inputs[name].dtype or ir.DataType.FLOAT)
                writing.renamed[name] = round_value(writing.nodes, name, self.model.values[name], place)

    def _write(self, writing: _Writing, node: ir.Node) -> None:
        """Append `node`: a layer that is installed in its quantized form, any other as it is."""
        proto = self._plain(writing, node)
        own = self._layers.get(id(node))
        rounded = self.layers.get(own.layer.name) if own else None
        if own is not None and rounded is not None:
            self._put_in(writing, proto, own, rounded)
        adds = self._adds.get(id(node))
        if adds is not None and adds.layer.name in self.layers:
            _put_bias(writing, proto, adds, self.layers[adds.layer.name])
        product = self._products.get(id(node))
        if product is not None and product.layer.name in self.model.products:
            _round_operands(writing, proto, product, self.model.products[product.layer.name])
        self._append(writing, proto, node)

    def _append(self, writing: _Writing, proto: onnx.NodeProto, node: ir.Node) -> None:
        """Append a node, with the rounding of what it makes."""
        writing.nodes.protos.append(proto)
        for index, value in enumerate(node.outputs):
            activation, place = self._rounding_of(value)
            if activation is not None:
                name, raw = proto.output[index], writing.nodes.name()
                proto.output[index] = raw
                round_value(writing.nodes, raw, activation, place)
                writing.nodes.call_last(name)

    def _rounding_of(self, value: ir.Value) -> tuple[Activation | None, Place]:
        """Return how a value is rounded: as the output of an installed layer, or for its own sake."""
        own = self._results.get(id(value))
        rounded = self.layers.get(own.layer.name) if own else None
        if own is not None and rounded is not None and rounded.activations.output is not None:
            return rounded.activations.output, _place(own)
        return self.model.values.get(value.name or ""), Place(value.dtype or ir.DataType.FLOAT)

    def _plain(self, writing: _Writing, node: ir.Node) -> onnx.NodeProto:
        """Return `node` as it is, but for what is inside of it and what it reads under other names."""
        proto: onnx.NodeProto = ir.serde.serialize_node(node)
        for index, name in enumerate(proto.input):
            proto.input[index] = writing.renamed.get(name, name)
        if any(True for _ in inner_graphs(node)):
            for attribute in proto.attribute:
                own = node.attributes[attribute.name]
                if own.type == ir.AttributeType.GRAPH:
                    attribute.g.CopyFrom(self._inner(writing, own.as_graph()))
                elif own.type == ir.AttributeType.GRAPHS:
                    del attribute.graphs[:]
                    attribute.graphs.extend(self._inner(writing, inner) for inner in own.as_graphs())
        return proto

    def _inner(self, writing: _Writing, graph: ir.Graph) -> onnx.GraphProto:
        """Return a graph inside of a node; constants that are added lie in the outermost graph."""
        inside = _Writing(writing.nodes.nested(), writing.renamed)
        for node in graph:
            self._write(inside, node)
        proto = onnx.GraphProto(name=graph.name or "graph", node=inside.nodes.protos)
        proto.input.extend(ir.serde.serialize_value(value) for value in graph.inputs)
        proto.output.extend(onnx.ValueInfoProto(name=value.name) for value in graph.outputs)
        read = set(_named(inside.nodes.protos)) | {value.name or "" for value in graph.outputs}
        for name, value in graph.initializers.items():
            if name in read and value.const_value is not None:
                proto.initializer.append(_serialized(name, value.const_value))
        return proto

    def _put_in(self, writing: _Writing, proto: onnx.NodeProto, own: GraphLayer, rounded: Rounded) -> None:
        """Make the node of a layer read its dequantized weight, and its input rounded."""
        stored = own.arrangement.stored(np.asarray(rounded.qtensor.dequantize()))
        dtype = own.weight.const_value.dtype.numpy()  # type: ignore[union-attr]
        proto.input[own.weight_index] = writing.nodes.constant(stored.astype(dtype, copy=False))
        if own.bias_add is None:
            _put_bias(writing, proto, own, rounded)
        if rounded.activations.input is not None:
            data = proto.input[own.data_index]
            proto.input[own.data_index] = round_value(writing.nodes, data, rounded.activations.input, _place(own))

    def _compare(self, writing: _Writing, beside: Beside) -> tuple[str, str]:
        """Append the quantized form beside the float one; return the sums of y^2 and of (y' - y)^2."""
        nodes, (own, rounded) = writing.nodes, beside
        if isinstance(own, GraphProduct):
            expected, actual = own.output.name or "", self._product_beside(writing, own, rounded)  # type: ignore[arg-type]
        else:
            expected, actual = own.result.name or "", self._layer_beside(writing, own, rounded)  # type: ignore[arg-type]
        exact = [nodes.add("Cast", name, to=int(ir.DataType.DOUBLE)) for name in (expected, actual)]
        noise = nodes.add("Sub", *exact)
        return tuple(nodes.reduce("ReduceSumSquare", name, None) for name in (exact[0], noise))  # type: ignore[return-value]

    def _layer_beside(self, writing: _Writing, own: GraphLayer, rounded: Rounded) -> str:
        """Append the quantized form of a layer; return what its output is called."""
        proto = self._plain(writing, own.node)
        self._put_in(writing, proto, own, rounded)
        actual = _renamed(writing, proto)
        if own.bias_add is not None:
            added = self._plain(writing, own.bias_add)
            added.input[list(own.bias_add.inputs).index(own.output)] = actual
            _put_bias(writing, added, own, rounded)
            actual = _renamed(writing, added)
        if rounded.activations.output is not None:
            actual = round_value(writing.nodes, actual, rounded.activations.output, _place(own))
        return actual

    def _product_beside(self, writing: _Writing, own: GraphProduct, rounded: Mapping[str, Activation]) -> str:
        proto = self._plain(writing, own.node)
        _round_operands(writing, proto, own, rounded)
        return _renamed(writing, proto)


def _renamed(writing: _Writing, proto: onnx.NodeProto) -> str:
    """Append a node that is there already under other names; return that of its output."""
    proto.name, proto.output[0] = "", writing.nodes.name()  # of two nodes with one name onnxruntime takes none
    writing.nodes.protos.append(proto)
    return str(proto.output[0])


def _round_operands(
    writing: _Writing, proto: onnx.NodeProto, own: GraphProduct, rounded: Mapping[str, Activation]
) -> None:
    """Make the node of a product read its operands rounded."""
    for name, operand in own.operands.items():
        place = Place(own.dtype, token=operand.axis)
        proto.input[operand.index] = round_value(writing.nodes, proto.input[operand.index], rounded[name], place)


def _put_bias(writing: _Writing, proto: onnx.NodeProto, own: GraphLayer, rounded: Rounded) -> None:
    """Make the node that adds the bias of a layer read what its codes stand for, where it has any."""
    value = own.bias_value
    if rounded.bias is None or value is None or value.const_value is None:
        return
    held = value.const_value
    numbers = np.asarray(rounded.bias.dequantize()).astype(held.dtype.numpy()).reshape(held.shape.numpy())
    index = list(proto.input).index(value.name or "")
    proto.input[index] = writing.nodes.constant(numbers)


def _place(own: GraphLayer) -> Place:
    spatial = len(own.arrangement.shape) - 2 if isinstance(own.arrangement, Kernel) else 0
    return Place(own.weight.const_value.dtype, spatial)  # type: ignore[union-attr]


def _declared(name: str, numbers: Numbers) -> onnx.ValueInfoProto:
    return onnx.helper.make_tensor_value_info(name, onnx.helper.np_dtype_to_tensor_dtype(numbers.dtype), None)


def _serialized(name: str, tensor: ir.TensorProtocol) -> onnx.TensorProto:
    if tensor.dtype != ir.DataType.STRING:  # else the numbers might stay in another file
        tensor = ir.Tensor(tensor.numpy(), dtype=tensor.dtype)
    proto: onnx.TensorProto = ir.serde.serialize_tensor(tensor)
    proto.name = name
    return proto


def _named(protos: Iterable[onnx.NodeProto]) -> Iterable[str]:
    """Yield every name that nodes, and those inside of them, read."""
    for proto in protos:
        yield from proto.input
        for attribute in proto.attribute:
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from (value.name for value in graph.output)
                yield from _named(graph.node)
