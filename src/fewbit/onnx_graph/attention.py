"""Find the products inside attention, S = Q K^T and O = P V with P = softmax(S), by the flow around each Softmax.

A MatMul of two activations whose outcome is scaled, masked or reshaped on its way to a Softmax is the first; one that
takes what comes of that Softmax is the second. Both have to be there. Einsum, Gemm and whole attentions are found too,
and stay float. Names are those of the module that makes them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import onnx_ir as ir

from fewbit.interfaces import Layer
from fewbit.onnx_graph.constants import is_constant
from fewbit.onnx_graph.layers import FLOATS, module_of, path_of

#: Names of the operands of each product.
OPERANDS = {"query_key": ("query", "key"), "probabilities_value": ("probabilities", "value")}
#: What may happen to scores before the Softmax, and to probabilities behind it.
_BETWEEN = frozenset(
    {
        "Add", "Cast", "Clip", "Concat", "Div", "Dropout", "Expand", "Identity", "Max", "Min", "Mul", "Neg", "Pad",
        "Reshape", "Slice", "Squeeze", "Sub", "Tanh", "Transpose", "Unsqueeze", "Where",
    }
)  # fmt: skip

#: Operators that multiply two activations.
_MULTIPLY = ("MatMul", "Einsum", "Gemm")
#: Operators that are a whole attention, by domain.
_WHOLE = {
    "": ("Attention",),
    "ai.onnx": ("Attention",),
    "com.microsoft": ("Attention", "GroupQueryAttention", "MultiHeadAttention", "PackedMultiHeadAttention"),
}


@dataclass(frozen=True, slots=True)
class Operand:
    """One of the two inputs of a product."""

    #: Its place among the inputs of the node.
    index: int
    #: The axis that a token lies along: of a value its own numbers, of all others those that are summed over.
    axis: int


@dataclass(frozen=True, slots=True)
class GraphProduct:
    """A product inside attention: a node of its own, or a part of one that is a whole attention."""

    #: As the front end shows it.
    layer: Layer
    node: ir.Node
    #: Of a whole attention there are none to be seen.
    operands: Mapping[str, Operand]

    @property
    def float_reason(self) -> str | None:
        """Why its operands cannot be rounded; `None`: they can."""
        if self.node.op_type == "MatMul":
            return None
        kind = self.node.op_type
        article = "an" if kind[0] in "AE" else "a"
        return (
            f"it is {'inside of ' if not self.operands else ''}{article} {kind}, and operands of a MatMul are rounded"
        )

    @property
    def output(self) -> ir.Value:
        """What comes out."""
        return self.node.outputs[0]

    @property
    def dtype(self) -> ir.DataType:
        """The type of its operands, where the graph says it of what they are made of."""
        waiting, seen = [self.output], set()
        while waiting:
            value = waiting.pop(0)
            maker = value.producer()
            if value.dtype is not None:
                if value.dtype in FLOATS:
                    return value.dtype
            elif maker is not None and maker.op_type == "Cast":
                return ir.DataType(maker.attributes["to"].as_int())
            elif maker is not None and id(maker) not in seen:
                seen.add(id(maker))
                waiting += [own for own in maker.inputs if own is not None]
        return ir.DataType.FLOAT

    def value(self, operand: str) -> ir.Value:
        """Return an operand by name."""
        value = self.node.inputs[self.operands[operand].index]
        assert value is not None
        return value


def find_products(model: ir.Model) -> list[GraphProduct]:
    """Return the products inside attention in the order of the graph, those of branches and loops too."""
    found: dict[int, tuple[str, int]] = {}
    for node in model.graph.all_nodes():
        if _is("Softmax", node):
            taken = dict(_behind(node))
            first = list(_before(node)) if taken else []
            if first:
                found |= {id(own): ("query_key", 0) for own in first}
                found |= {id(own): ("probabilities_value", index) for own, index in taken.items()}
    made = []
    for node in model.graph.all_nodes():
        if id(node) in found:
            made.append(_product(node, *found[id(node)]))
        elif node.op_type in _WHOLE.get(node.domain, ()):
            made += [GraphProduct(_layer(node, role), node, {}) for role in OPERANDS]
    offers = [list(_offers(own)) for own in made]
    counts = Counter(name for names in offers for name in set(names))
    names = [next(name for name in own if counts[name] == 1) for own in offers]
    return [replace(own, layer=replace(own.layer, name=name)) for own, name in zip(made, names, strict=True)]


def _product(node: ir.Node, role: str, first: int) -> GraphProduct:
    """Return a product by its role; `first` is the place of the first operand of that."""
    names = OPERANDS[role]
    places = {names[0]: first, names[1]: 1 - first}
    # Of the first input the last axis is summed over, of the second the last but one.
    axes = {name: (-2 if index else -1) if name != "value" else (-1 if index else -2) for name, index in places.items()}
    return GraphProduct(_layer(node, role), node, {name: Operand(places[name], axes[name]) for name in names})


def _layer(node: ir.Node, role: str) -> Layer:
    return Layer(role, "attention", (0, 0), node.op_type, multiplies_rows=False, operands=OPERANDS[role])


def _before(softmax: ir.Node) -> Iterator[ir.Node]:
    """Yield the products that make the scores of a Softmax."""
    yield from (node for node, _ in _reached(softmax, lambda node: [(own, 0) for own in _makers(node)]))


def _behind(softmax: ir.Node) -> Iterator[tuple[ir.Node, int]]:
    """Yield the products that take the probabilities of a Softmax, and as which input."""
    yield from _reached(softmax, lambda node: [use for value in node.outputs for use in value.uses()])


def _reached(softmax: ir.Node, beside: Callable[[ir.Node], list[tuple[ir.Node, int]]]) -> Iterator[tuple[ir.Node, int]]:
    """Yield the products next to a Softmax, with the place of an input, going on from node to node `beside`."""
    waiting, seen = [softmax], {id(softmax)}
    while waiting:
        for node, place in beside(waiting.pop()):
            if id(node) in seen:
                continue
            seen.add(id(node))
            if node.domain in ("", "ai.onnx") and node.op_type in _MULTIPLY:
                if _multiplies_activations(node):
                    yield node, place
            elif node.domain in ("", "ai.onnx") and node.op_type in _BETWEEN:
                waiting.append(node)


def _makers(node: ir.Node) -> Iterator[ir.Node]:
    for value in node.inputs:
        maker = value.producer() if value is not None else None
        if maker is not None:
            yield maker


def _multiplies_activations(node: ir.Node) -> bool:
    factors = node.inputs[:2] if node.op_type == "Gemm" else node.inputs
    known = [value for value in factors if value is not None and not is_constant(value)]
    return len(known) == 2 and all(value.dtype is None or value.dtype in FLOATS for value in known)


def _is(kind: str, node: ir.Node) -> bool:
    return node.op_type == kind and node.domain in ("", "ai.onnx")


def _offers(own: GraphProduct) -> Iterator[str]:
    """Yield what a product might be called, the best first; the last one has nobody else."""
    for path in (module_of(own.node), path_of(own.node)):
        if path is not None:
            yield f"{path}.{own.layer.name}" if path else own.layer.name
    yield f"{own.node.op_type}:{own.output.name}.{own.layer.name}"
