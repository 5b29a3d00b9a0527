"""A float32 graph in float16 or bfloat16, with islands of float32 where numbers would overflow, Casts at their shores.

Which inputs and outputs of a node may have 16 bits is read from the schema of its operator; inputs and outputs of the
graph keep their types, unless told otherwise. Largest float16: 65504.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.checkpoints.onnx.element_type import CASTS
from fewbit.checkpoints.onnx.operator_types import OperatorTypes, operator_types
from fewbit.checkpoints.onnx.opset import upgraded
from fewbit.formats.cast import FP16, Cast
from fewbit.onnx_graph.constants import is_constant
from fewbit.onnx_graph.file import weight_bytes, write_model
from fewbit.onnx_graph.live import OnnxModel

#: Values that were seen beyond this part of the range count as overflowing: other inputs may give larger ones.
HEADROOM = 0.5
_FLOAT = ir.DataType.FLOAT
#: Operators whose scales float16 does not hold.
_KEPT = frozenset({"DequantizeLinear", "DynamicQuantizeLinear", "QuantizeLinear"})


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfWritten:
    """What a file in 16 bits holds."""

    path: Path
    #: Why nodes stayed float32, by the name of their first output.
    islands: dict[str, str]
    #: Nodes that compute in 16 bits, and Casts between them and the others.
    nodes: int
    casts: int
    #: Bytes of all constants.
    nbytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Halving:
    """What becomes of a graph, beside what its numbers say."""

    #: The type that it changes to.
    cast: Cast = FP16
    #: Why nodes stay float32 though they could change, by the name of their first output.
    kept: Mapping[str, str] = field(default_factory=dict)
    #: Whether its float inputs and outputs change too.
    ends: bool = False


def write_half(
    model: OnnxModel,
    path: str | Path,
    extremes: Mapping[str, tuple[float, float]],
    asked: Halving | None = None,
    *,
    overwrite: bool = False,
) -> HalfWritten:
    """Write the float graph of `model` in 16 bits to `path`, float16 if nothing else is `asked` for.

    `extremes` holds the least and the largest number that was seen of each value, by name; what it lacks counts as
    small.

    Raises:
        CheckpointError: `path` exists or cannot be written, or an operator cannot be had in the set that is needed.

    """
    asked = asked or Halving()
    conversion = _Conversion(upgraded(model.graph.clone(), CASTS[asked.cast.dtype]), extremes, asked)
    conversion.run()
    return HalfWritten(
        path=write_model(conversion.model, path, overwrite=overwrite),
        islands=conversion.islands,
        nodes=conversion.nodes,
        casts=conversion.casts,
        nbytes=weight_bytes(conversion.model),
    )


@dataclass(slots=True)
class _Conversion:
    """A graph while its nodes are converted one after the other."""

    model: ir.Model
    extremes: Mapping[str, tuple[float, float]]
    asked: Halving
    islands: dict[str, str] = field(default_factory=dict)
    nodes: int = 0
    casts: int = 0
    #: Types of values as they were, by identity; and those that have 16 bits now.
    before: dict[int, ir.DataType | None] = field(default_factory=dict)
    halves: set[int] = field(default_factory=set)
    #: Values in the other type, and which are computed from integers alone.
    others: dict[int, ir.Value] = field(default_factory=dict)
    counts: set[int] = field(default_factory=set)
    large: dict[int, bool] = field(default_factory=dict)

    @property
    def half(self) -> ir.DataType:
        """The type of 16 bits."""
        return ir.DataType[self.asked.cast.dtype.upper()]

    def run(self) -> None:
        """Convert every node that can be, and cast what goes between the others."""
        graph = self.model.graph
        self.before = {id(value): value.dtype for value in (*graph.inputs, *graph.initializers.values())}
        for value in graph.inputs if self.asked.ends else ():
            if value.dtype == _FLOAT and not value.is_initializer():
                self._narrow(value)
        for node in list(graph):
            self._convert(node, operator_types(node, graph.opset_imports.get(node.domain, 1)))
        for inner in (own for own in self.model.graphs() if own is not graph):
            self._keep(inner)
        for place, value in enumerate(graph.outputs):
            if self.before.get(id(value)) == _FLOAT and (id(value) in self.halves) != self.asked.ends:
                name, other = str(value.name), self._other(value)
                value.name, other.name, other.shape = (
                    f"{name}/{'float' if self.asked.ends else 'half'}",
                    name,
                    value.shape,
                )
                graph.outputs[place] = other
        for name in [name for name, value in graph.initializers.items() if not _is_read(value)]:
            del graph.initializers[name]

    def _convert(self, node: ir.Node, types: OperatorTypes | None) -> None:
        """Give a node inputs of the types that it computes with from now on."""
        floats = [value for value in node.inputs if value is not None and self.before.get(id(value)) == _FLOAT]
        for place, value in enumerate(node.outputs):
            self.before[id(value)] = self._type_of(node, place, types)
        made = [value for value in node.outputs if self.before[id(value)] == _FLOAT]
        reason = self._reason(node, types, [*floats, *made]) if floats or made else None
        variables = set() if types is None or reason else self._variables(node, types)
        if reason:
            self.islands[str(node.outputs[0].name)] = reason
        for place, given in enumerate(list(node.inputs)):
            if given is not None and self.before.get(id(given)) == _FLOAT:
                half = types is not None and types.inputs[place] in variables
                node.replace_input_with(place, given if half == (id(given) in self.halves) else self._other(given))
        for place, value in enumerate(node.outputs):
            if types is not None and types.outputs[place] in variables and self.before[id(value)] == _FLOAT:
                self._narrow(value)
        self.nodes += bool(variables)
        _tell(node, variables, self.half)

    def _narrow(self, value: ir.Value) -> None:
        self.halves.add(id(value))
        value.type = ir.TensorType(self.half)

    def _variables(self, node: ir.Node, types: OperatorTypes) -> set[str]:
        """Return the type variables of a node that become float16: float32 wherever it has them, and allowed to."""
        bound: dict[str, set[ir.DataType | None]] = {}
        for name, value in zip(types.inputs, node.inputs, strict=True):
            if value is not None:
                bound.setdefault(name, set()).add(self.before.get(id(value)))
        found = {name for name, kinds in bound.items() if kinds == {_FLOAT} and types.takes(name, self.half)}
        if node.op_type in _TOLD and self.before[id(node.outputs[0])] == _FLOAT:
            found.add(types.outputs[0])
        return found

    def _type_of(self, node: ir.Node, place: int, types: OperatorTypes | None) -> ir.DataType | None:
        """Return the type of an output before the conversion; `None`: it is not known."""
        value = node.outputs[place]
        if value.dtype is not None or types is None:
            return value.dtype
        if types.fixed(place) is not None:
            return types.fixed(place)
        for name, given in zip(types.inputs, node.inputs, strict=True):
            if given is not None and name == types.outputs[place]:
                return self.before.get(id(given))
        return _TOLD[node.op_type](node) if node.op_type in _TOLD else None

    def _reason(self, node: ir.Node, types: OperatorTypes | None, floats: list[ir.Value]) -> str | None:
        """Return why a node stays float32."""
        own = self._operator_reason(node, types)
        if own or not self._counts(node):
            return own or self._size_reason(floats)
        self.counts.update(id(value) for value in node.outputs)
        exact = 1 << (self.asked.cast.form.mantissa + 1)
        return f"it computes with integers alone, which {self.asked.cast.dtype} holds up to {exact}"

    def _operator_reason(self, node: ir.Node, types: OperatorTypes | None) -> str | None:
        """Return why what a node computes keeps it float32."""
        if types is None:
            return f"onnx does not know {node.domain}.{node.op_type}"
        if node.op_type in _KEPT or any(own.type in _GRAPHS for own in node.attributes.values()):
            return f"{node.op_type} is left as it is"
        if not any(types.takes(name, self.half) for name in (*types.inputs, *types.outputs)):
            return f"{node.op_type} takes no {self.asked.cast.dtype}"
        return self.asked.kept.get(str(node.outputs[0].name))

    def _size_reason(self, floats: list[ir.Value]) -> str | None:
        """Return which of its numbers overflow."""
        largest = self.asked.cast.largest
        for value in floats:
            low, high = self.extremes.get(str(value.name), (0.0, 0.0))
            if not max(-low, high) <= largest * HEADROOM:
                return f"value {value.name} reaches {max(-low, high):.3g}"
            if is_constant(value) and self._is_large(value):
                return f"constant {value.name} holds a number beyond {largest:g}"
        return None

    def _counts(self, node: ir.Node) -> bool:
        """Whether a node casts integers to float, or computes with such numbers and constants alone."""
        given = [value for value in node.inputs if value is not None and not is_constant(value)]
        if node.op_type == "Cast":
            kind = self.before.get(id(given[0])) if given else None
            return kind is not None and kind.is_integer() and self.before[id(node.outputs[0])] == _FLOAT
        floats = [value for value in given if self.before.get(id(value)) == _FLOAT]
        return bool(floats) and all(id(value) in self.counts for value in floats)

    def _is_large(self, value: ir.Value) -> bool:
        if id(value) not in self.large:
            numbers = value.const_value.numpy()  # type: ignore[union-attr]
            self.large[id(value)] = bool(np.any((np.abs(numbers) > self.asked.cast.largest) & np.isfinite(numbers)))
        return self.large[id(value)]

    def _other(self, value: ir.Value) -> ir.Value:
        """Return `value` in the other of the two types."""
        if id(value) not in self.others:
            constant = is_constant(value) and id(value) not in self.halves
            self.others[id(value)] = self._constant(value) if constant else self._cast(value)
        return self.others[id(value)]

    def _constant(self, value: ir.Value) -> ir.Value:
        tensor, name = value.const_value, f"{value.name}/half"
        assert tensor is not None

        def narrow() -> ir.TensorProtocol:
            return ir.Tensor(tensor.numpy().astype(kind.numpy()))

        kind = self.half
        made = ir.LazyTensor(narrow, dtype=kind, shape=ir.Shape(tensor.shape.numpy()), name=name)
        half = ir.Value(name=name, type=ir.TensorType(kind), shape=made.shape, const_value=made)
        self.model.graph.register_initializer(half)
        return half

    def _cast(self, value: ir.Value) -> ir.Value:
        kind = _FLOAT if id(value) in self.halves else self.half
        node = ir.Node("", "Cast", [value], [ir.AttrInt64("to", int(kind))])
        made = node.outputs[0]
        made.name, made.type = f"{value.name}/{kind.name.lower()}", ir.TensorType(kind)
        node.name = f"{made.name}/Cast"
        self.casts += 1
        maker = value.producer()
        if maker is not None:
            self.model.graph.insert_after(maker, node)
        else:
            self.model.graph.insert_before(next(iter(self.model.graph)), node)
        return made

    def _keep(self, inner: ir.Graph) -> None:
        """Let what is inside of a branch or loop go on reading float32 from outside."""
        for node in inner:
            for place, value in enumerate(list(node.inputs)):
                if value is not None and id(value) in self.halves:
                    node.replace_input_with(place, self._other(value))
        for place, value in enumerate(inner.outputs):
            if id(value) in self.halves:
                inner.outputs[place] = self._other(value)


def _cast_to(node: ir.Node) -> ir.DataType:
    return ir.DataType(node.attributes["to"].as_int())


def _filled_with(node: ir.Node) -> ir.DataType:
    return node.attributes["value"].as_tensor().dtype if "value" in node.attributes else _FLOAT


#: Operators that an attribute tells the type of their output, and how.
_TOLD: dict[str, Any] = {"Cast": _cast_to, "ConstantOfShape": _filled_with}
_GRAPHS = (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _tell(node: ir.Node, variables: set[str], half: ir.DataType) -> None:
    """Tell a node by its attribute that its output has 16 bits now."""
    if "T2" not in variables or node.op_type not in _TOLD:
        return
    if node.op_type == "Cast":
        node.attributes["to"] = ir.AttrInt64("to", int(half))
        return
    own = node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else np.zeros(1, np.float32)
    node.attributes["value"] = ir.AttrTensor("value", ir.Tensor(own.astype(half.numpy())))


def _is_read(value: ir.Value) -> bool:
    return bool(value.uses()) or value.is_graph_input() or value.is_graph_output()
