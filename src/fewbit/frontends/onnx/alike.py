"""Small models that differ in their float constants alone, made ready once: that takes longer than to run one.

Values are numbered in the order of the nodes and float constants become inputs, so that layers alike are one model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import onnx

from fewbit.errors import CalibrationError, SourceError
from fewbit.frontends.onnx.session import Numbers, Session

#: Bytes of the constants and the inputs of a small model.
SMALL = 1 << 17
#: Models that are kept ready.
_KEPT = 32


@dataclass(frozen=True, slots=True)
class Alike:
    """One of several models that share a session."""

    session: Session
    #: The number of each value.
    numbers: Mapping[str, str]
    #: Its own float constants, by number.
    constants: Mapping[str, Numbers]
    outputs: tuple[str, ...]
    #: The model itself, of which messages speak, with its constants and what it is called.
    plain: tuple[onnx.ModelProto, Mapping[str, Numbers], str]

    def run(self, feeds: Mapping[str, Numbers]) -> dict[str, Numbers]:
        """Return all outputs by name; raises `CalibrationError` where onnxruntime fails."""
        given = {self.numbers[name]: own for name, own in feeds.items()}
        try:
            found = self.session.run({**given, **self.constants})
        except CalibrationError:
            return Session.of(*self.plain).run(feeds)  # its error names the node
        return dict(zip(self.outputs, found.values(), strict=True))


@dataclass(slots=True)
class Sessions:
    """What is ready, by structure."""

    _ready: dict[tuple[Any, ...], Session] = field(default_factory=dict)

    def session(
        self, proto: onnx.ModelProto, constants: Mapping[str, Numbers], name: str, given: Iterable[Numbers]
    ) -> Session | Alike:
        """Return `proto` ready to run on inputs like `given`, with `constants` beside its own; raises as `Session.of`.

        What is small runs as it is, on one thread: nothing is fused.
        """
        small = sum(own.nbytes for own in (*given, *constants.values())) <= SMALL
        if not small or proto.functions or not all(_is_flat(node) for node in proto.graph.node):
            return Session.of(proto, constants, name)
        numbered = _Numbered.of(proto, constants)
        try:
            session = self._ready.pop(numbered.key, None) or Session.of(numbered.model(), {}, name, as_it_is=True)
        except SourceError:  # perhaps a constant has to be one; else this error has the names
            return Session.of(proto, constants, name)
        self._ready[numbered.key] = session
        if len(self._ready) > _KEPT:
            del self._ready[next(iter(self._ready))]
        outputs = tuple(value.name for value in proto.graph.output)
        return Alike(session, numbered.names, numbered.floats, outputs, (proto, constants, name))


@dataclass(slots=True)
class _Numbered:
    """A model with numbers for names."""

    proto: onnx.ModelProto
    constants: Mapping[str, Numbers]
    #: By name.
    names: dict[str, str] = field(default_factory=dict)
    #: Float constants by number.
    floats: dict[str, Numbers] = field(default_factory=dict)
    #: The same for models that differ in their names and in those constants alone.
    key: tuple[Any, ...] = ()

    @classmethod
    def of(cls, proto: onnx.ModelProto, constants: Mapping[str, Numbers]) -> _Numbered:
        """Return `proto` numbered, float `constants` as inputs and others inside of it."""
        own, graph = cls(proto, constants), proto.graph
        inputs = tuple((own.number(value.name), value.type.SerializeToString()) for value in graph.input)
        nodes = tuple(
            (
                node.op_type,
                tuple(own.number(name) for name in node.input),
                tuple(own.number(name) for name in node.output),
                tuple(attribute.SerializeToString() for attribute in node.attribute),
            )
            for node in graph.node
        )
        outputs = tuple(own.number(value.name) for value in graph.output)
        whole = []
        for name, numbers in constants.items():
            number, floats = own.number(name), numbers.dtype.kind == "f"
            whole.append((number, numbers.dtype.str, numbers.shape, None if floats else numbers.tobytes()))
            if floats:
                own.floats[number] = numbers
        inside = tuple((own.number(tensor.name), tensor.SerializeToString()) for tensor in graph.initializer)
        imports = tuple((known.domain, known.version) for known in proto.opset_import)
        own.key = (inputs, nodes, outputs, tuple(whole), inside, imports)
        return own

    def number(self, name: str) -> str:
        """Return the number of a value; an input that is left out has no name."""
        return self.names.setdefault(name, str(len(self.names))) if name else ""

    def model(self) -> onnx.ModelProto:
        """Return it."""
        graph, given = onnx.GraphProto(name="alike"), self.proto.graph
        graph.input.extend(self._value(value) for value in given.input)
        for node in given.node:
            own = graph.node.add(op_type=node.op_type, domain=node.domain, attribute=node.attribute)
            own.input.extend(self.number(name) for name in node.input)
            own.output.extend(self.number(name) for name in node.output)
        graph.output.extend(self._value(value) for value in given.output)
        for tensor in given.initializer:
            graph.initializer.append(tensor)
            graph.initializer[-1].name = self.number(tensor.name)
        for name, numbers in self.constants.items():
            number = self.number(name)
            if number in self.floats:
                kind = onnx.helper.np_dtype_to_tensor_dtype(numbers.dtype)
                graph.input.append(onnx.helper.make_tensor_value_info(number, kind, numbers.shape))
            else:
                graph.initializer.append(onnx.numpy_helper.from_array(numbers, number))
        imports = self.proto.opset_import
        return onnx.ModelProto(ir_version=self.proto.ir_version, graph=graph, opset_import=imports)

    def _value(self, value: onnx.ValueInfoProto) -> onnx.ValueInfoProto:
        own = onnx.ValueInfoProto(name=self.number(value.name))
        if value.HasField("type"):
            own.type.CopyFrom(value.type)
        return own


def _is_flat(node: onnx.NodeProto) -> bool:
    """Whether a node is one of onnx without a graph inside of it."""
    return node.domain in ("", "ai.onnx") and not any(own.HasField("g") or own.graphs for own in node.attribute)
