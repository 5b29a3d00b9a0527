"""Find the layers of an ONNX graph: Conv, ConvTranspose, Gemm, MatMul and Gather that read a constant weight.

A layer is called after its weight (`encoder.fc` of `encoder.fc.weight`), the module that torch's exporter recorded, or
its node, whichever is there first and unique.
"""

from __future__ import annotations

import ast
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import onnx_ir as ir

from fewbit.interfaces import Layer, LayerKind
from fewbit.onnx_graph.arrangement import Arrangement, Columns, Kernel, Rows
from fewbit.onnx_graph.constants import is_constant, origin

#: Types of weights that are quantized.
FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
#: What torch's exporter notes at a node: the modules around it, outermost first, as a Python list.
SCOPES = "pkg.torch.onnx.name_scopes"


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphLayer:
    """A node that is a layer, and where its weight is."""

    layer: Layer
    node: ir.Node
    weight: ir.Value
    arrangement: Arrangement
    #: Which input of the node the weight is, and which one is rounded beside it.
    weight_index: int = 1
    data_index: int = 0

    @property
    def data(self) -> ir.Value:
        """What goes in: activations, or the indices of a Gather."""
        value = self.node.inputs[self.data_index]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """What comes out of the node, before a bias that a node of its own adds."""
        return self.node.outputs[0]

    @property
    def bias_value(self) -> ir.Value | None:
        """The constant that is added to the output, a number for each channel: here, or in a node of its own."""
        node = self.bias_add
        value = self.bias if node is None else node.inputs[1 - list(node.inputs).index(self.output)]
        scaled = "beta" in self.node.attributes and self.node.attributes["beta"].as_float() != 1.0
        if value is None or scaled or value.const_value is None or value.const_value.size != self.layer.shape[0]:
            return None
        return value

    @property
    def result(self) -> ir.Value:
        """What counts as the output of the layer: behind its bias, also one that a node of its own adds."""
        return self.bias_add.outputs[0] if self.bias_add is not None else self.output

    @property
    def bias(self) -> ir.Value | None:
        """The constant bias that is an input of the node."""
        value = self.node.inputs[2] if len(self.node.inputs) > 2 else None
        return value if is_constant(value) else None

    @property
    def bias_add(self) -> ir.Node | None:
        """The node that adds a constant bias to the output of a MatMul, where nothing else reads that."""
        uses = list(self.output.uses())
        if self.node.op_type != "MatMul" or len(uses) != 1 or self.output.is_graph_output():
            return None
        (node, place) = uses[0]
        other = node.inputs[1 - place] if node.op_type == "Add" else None
        own = other is not None and other.shape is not None and is_constant(other)
        return node if own and other is not None and tuple(other.shape.numpy()) == (self.layer.shape[0],) else None  # type: ignore[union-attr]


@dataclass(frozen=True, slots=True)
class _Found:
    """A node that reads a constant weight."""

    node: ir.Node
    kind: LayerKind
    arrangement: Arrangement
    weight_index: int
    #: Whether each output is a row of the input, of a grouped convolution a part of it, times the weight.
    multiplies_rows: bool

    @property
    def weight(self) -> ir.Value:
        value = self.node.inputs[self.weight_index]
        assert value is not None
        return value


def find_layers(model: ir.Model) -> list[GraphLayer]:
    """Return the layers of `model`, those of subgraphs too, in the order of the graph.

    Constants have to be initializers: `fold_constants` comes first.
    """
    found = [own for node in model.graph.all_nodes() if (own := _found(node))]
    names = _names(found)
    owners = defaultdict(list)
    for own, name in zip(found, names, strict=True):
        owners[id(origin(own.weight))].append(name)
    heads = set(_heads(found))
    return [
        _layer(own, name, "head" if number in heads else own.kind, tuple(owners[id(origin(own.weight))]))
        for number, (own, name) in enumerate(zip(found, names, strict=True))
    ]


def _layer(own: _Found, name: str, kind: LayerKind, owners: tuple[str, ...]) -> GraphLayer:
    stored = _shape(own.weight)
    rows = _canonical(own, stored)
    layer = Layer(
        name=name,
        kind=kind,
        shape=rows,
        module_class=own.node.op_type,
        stored=stored if stored != rows else None,
        multiplies_rows=own.multiplies_rows,
        groups=own.arrangement.groups if isinstance(own.arrangement, Kernel) else 1,
        tied=tuple(other for other in owners if other != name),
    )
    made = GraphLayer(
        layer=layer,
        node=own.node,
        weight=own.weight,
        arrangement=own.arrangement,
        weight_index=own.weight_index,
        data_index=1 - own.weight_index,
    )
    return replace(made, layer=replace(layer, bias=True)) if made.bias_value is not None else made


def _canonical(own: _Found, stored: tuple[int, ...]) -> tuple[int, int]:
    arrangement = own.arrangement
    if isinstance(arrangement, Kernel):
        if not arrangement.transposed:
            return stored[0], stored[1] * arrangement.positions
        return stored[1] * arrangement.groups, stored[0] // arrangement.groups * arrangement.positions
    return (stored[0], stored[1]) if isinstance(arrangement, Rows) else (stored[1], stored[0])


def _shape(value: ir.Value) -> tuple[int, ...]:
    assert value.const_value is not None
    return tuple(int(size) for size in value.const_value.shape.numpy())


def _found(node: ir.Node) -> _Found | None:
    look = _LOOK.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    return look(node) if look else None


def _weight(node: ir.Node, index: int, rank: int | None) -> bool:
    """Whether input `index` is a constant of floats with `rank` axes."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None or not is_constant(value) or value.const_value is None:
        return False
    right = len(value.const_value.shape) == rank if rank else len(value.const_value.shape) > 2
    return right and value.const_value.dtype in FLOATS and value.const_value.size > 0


def _matmul(node: ir.Node) -> _Found | None:
    return (
        _Found(node, "linear", Columns(), 1, True) if _weight(node, 1, 2) and not is_constant(node.inputs[0]) else None
    )


def _gemm(node: ir.Node) -> _Found | None:
    flags = {name: node.attributes[name].as_int() for name in ("transA", "transB") if name in node.attributes}
    if not _weight(node, 1, 2) or flags.get("transA") or is_constant(node.inputs[0]):
        return None
    plain = "alpha" not in node.attributes or node.attributes["alpha"].as_float() == 1.0
    return _Found(node, "linear", Rows() if flags.get("transB") else Columns(), 1, plain)


def _gather(node: ir.Node) -> _Found | None:
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 0
    return _Found(node, "embedding", Rows(), 0, False) if _weight(node, 0, 2) and axis == 0 else None


def _convolution(node: ir.Node) -> _Found | None:
    if not _weight(node, 1, None):
        return None
    groups = node.attributes["group"].as_int() if "group" in node.attributes else 1
    value = node.inputs[1]
    assert value is not None
    transposed = node.op_type == "ConvTranspose"
    kernel = Kernel(shape=_shape(value), groups=groups, transposed=transposed)
    return _Found(node, "conv", kernel, 1, not transposed)


_LOOK: dict[str, Callable[[ir.Node], _Found | None]] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Gather": _gather,
    "Conv": _convolution,
    "ConvTranspose": _convolution,
}


def _heads(found: list[_Found]) -> Iterator[int]:
    """Yield the places of the linear layers that give one score for each row of an embedding."""
    embeddings = [own for own in found if own.kind == "embedding"]
    rows = {_shape(own.weight)[0] for own in embeddings}
    shared = {id(origin(own.weight)) for own in embeddings}
    for place, own in enumerate(found):
        if own.kind == "linear":
            outputs = _canonical(own, _shape(own.weight))[0]
            if id(origin(own.weight)) in shared or (outputs in rows and outputs >= 256):
                yield place


def _names(found: list[_Found]) -> list[str]:
    """Return a name for each, no two alike."""
    offers = [list(_offers(own)) for own in found]
    counts = Counter(offer for own in offers for offer in set(own))
    names: list[str] = []
    for own, offered in zip(found, offers, strict=True):
        unique = [offer for offer in offered if counts[offer] == 1]
        names.append(unique[0] if unique else f"{own.node.op_type}:{own.node.outputs[0].name}")
    return names


def _offers(own: _Found) -> Iterator[str]:
    """Yield what a layer might be called, the best first."""
    weight = origin(own.weight).name or ""
    if weight.endswith(".weight"):
        yield weight.removesuffix(".weight")
    if module := module_of(own.node):
        yield module
    if own.node.name:
        yield path_of(own.node) or own.node.name
        yield own.node.name


def module_of(node: ir.Node) -> str | None:
    """Return the module that torch's exporter noted at a node, the innermost; `None`: there is no note."""
    scopes = node.metadata_props.get(SCOPES)
    if not scopes:
        return None
    # The innermost scope is the operation itself; that of the whole model has no name.
    return next((scope for scope in reversed(ast.literal_eval(scopes)[:-1]) if scope), "")


def path_of(node: ir.Node) -> str | None:
    """Return the path in the name of a node, as exporters of old wrote it: `/encoder/fc/MatMul`."""
    return node.name.strip("/").removesuffix(f"/{node.op_type}").replace("/", ".") if node.name else None
