"""Which types the inputs and outputs of a node may have, from the schema of its operator in onnx.

A type variable such as T stands for one type wherever a node has it; other parameters have one type for good.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx
import onnx_ir as ir

_TENSORS = {f"tensor({kind.name.lower()})": kind for kind in ir.DataType} | {"tensor(string)": ir.DataType.STRING}


@dataclass(frozen=True, slots=True)
class OperatorTypes:
    """The parameters of one node."""

    #: The type variable, or the type, of each input and output.
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    #: What each variable may stand for.
    allowed: dict[str, frozenset[str]]

    def takes(self, variable: str, dtype: ir.DataType) -> bool:
        """Whether `variable` may stand for tensors of `dtype`."""
        return f"tensor({dtype.name.lower()})" in self.allowed.get(variable, frozenset())

    def fixed(self, place: int) -> ir.DataType | None:
        """Return the type of output `place` where it is always the same."""
        return _TENSORS.get(self.outputs[place])


def operator_types(node: ir.Node, opset: int) -> OperatorTypes | None:
    """Return the types that the inputs and outputs of `node` may have; `None`: onnx does not know the operator."""
    try:
        schema = onnx.defs.get_schema(node.op_type, max(opset, 1), node.domain)
    except onnx.defs.SchemaError:
        return None
    return OperatorTypes(
        _listed(schema.inputs, len(node.inputs)),
        _listed(schema.outputs, len(node.outputs)),
        {own.type_param_str: frozenset(own.allowed_type_strs) for own in schema.type_constraints},
    )


def _listed(parameters: Sequence[onnx.defs.OpSchema.FormalParameter], count: int) -> tuple[str, ...]:
    """Return the type of each of `count` parameters; the last may stand for several."""
    return tuple(parameters[min(place, len(parameters) - 1)].type_str for place in range(count))
