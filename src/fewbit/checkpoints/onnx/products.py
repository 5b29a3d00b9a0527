"""Products inside attention with both operands rounded: Q/DQ pairs, or DynamicQuantizeLinear and MatMulInteger.

y = (a' - z_a) (b' - z_b) s_a s_b; a runtime computes DQ(a) * DQ(b) in integers where it knows how.
"""

from __future__ import annotations

from collections.abc import Mapping

import onnx
import onnx_ir as ir

from fewbit.activation import Activation
from fewbit.checkpoints.onnx.draft import Draft
from fewbit.checkpoints.onnx.dynamic import moment_of
from fewbit.checkpoints.onnx.rounding import round_at
from fewbit.onnx_graph.attention import GraphProduct

#: What onnxruntime may make of one in integers.
INTEGERS = ("DynamicQuantizeMatMul", "MatMulInteger", "MatMulIntegerToFloat", "QLinearMatMul")


def write_product(draft: Draft, own: GraphProduct, rounded: Mapping[str, Activation]) -> str:
    """Round both operands of a product; return what it became."""
    if not all(activation.scheme.static for activation in rounded.values()):
        return _write_dynamic(draft, own)
    dtype, own.node.name = own.dtype, own.node.name or own.layer.name  # `fusion` knows it by that
    for name, operand in own.operands.items():
        round_at(draft, own.node, operand.index, rounded[name], dtype, f"{own.layer.name}.{name}")
    integers = all(draft.runtime.multiplies_in_integers(activation.scheme) for activation in rounded.values())
    return "QDQ" if integers else "QDQ, computed in float"


def is_made_of(own: GraphProduct, node: onnx.NodeProto) -> bool:
    """Whether `node` is what onnxruntime made of a product of the float graph: the name of one of both is the same."""
    name, output = own.layer.name, str(own.output.name)
    outputs = {output, f"{output}/codes", f"{output}/float", f"{name}.scaled"}
    return node.name in (name, own.node.name or name, f"{name}.product/MatMulInteger") or not outputs.isdisjoint(
        node.output
    )


def _write_dynamic(draft: Draft, own: GraphProduct) -> str:
    name, node, dtype = own.layer.name, own.node, own.dtype
    first, second = (moment_of(draft, value, dtype) for value in node.inputs if value is not None)
    both = draft.node("Mul", [first[1], second[1]], f"{name}.product_scale")
    product = draft.node("MatMulInteger", [first[0], second[0], first[2], second[2]], f"{name}.product")
    wide = draft.node("Cast", product.outputs, f"{name}.sum", {"to": int(ir.DataType.FLOAT)})
    nodes = [both, product, wide, draft.node("Mul", [wide.outputs[0], both.outputs[0]], f"{name}.scaled")]
    if dtype != ir.DataType.FLOAT:
        nodes.append(draft.node("Cast", nodes[-1].outputs, f"{name}.narrow", {"to": int(dtype)}))
    draft.put_before(node, nodes)
    draft.replace(own.output, nodes[-1].outputs[0])
    draft.remove(node)
    return "DynamicQuantizeLinear, MatMulInteger"
