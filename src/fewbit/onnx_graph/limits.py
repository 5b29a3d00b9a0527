"""Between which numbers a Relu or Clip leaves values as they are: what a rounding behind it may do in its place."""

from __future__ import annotations

import onnx_ir as ir

from fewbit.onnx_graph.constants import is_constant


def limits_of(node: ir.Node) -> tuple[float, float] | None:
    """Return the least and the largest number that `node` lets through; `None`: it is none of these, or a run tells."""
    if node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Relu":
        return 0.0, float("inf")
    if node.op_type != "Clip":
        return None
    found = []
    for place, (name, usual) in enumerate((("min", -float("inf")), ("max", float("inf"))), 1):
        value = node.inputs[place] if place < len(node.inputs) else None
        if value is None:
            found.append(node.attributes[name].as_float() if name in node.attributes else usual)
        elif is_constant(value) and value.const_value is not None:
            found.append(float(value.const_value.numpy().reshape(())))
        else:
            return None
    return found[0], found[1]
