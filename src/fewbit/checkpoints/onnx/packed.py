"""Weights alone for onnxruntime's own operators: com.microsoft MatMulNBits and GatherBlockQuantized.

Codes are unsigned, low bits first, in blocks along the inputs: B (out, blocks, block * bits / 8), scales (out, blocks),
zero points packed likewise, 2^(bits - 1) where nothing stands. Source: onnxruntime, ContribOperators.md.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.checkpoints.onnx.draft import Attributes, Draft
from fewbit.checkpoints.onnx.rounding import stored_scale
from fewbit.formats.integer import Int
from fewbit.interfaces import QuantizedLayer
from fewbit.numerics.namespace import to_numpy
from fewbit.numerics.packing import pack
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import Rounded
from fewbit.qtensor import QTensor
from fewbit.runtimes.form import Packing, packing_of

Numbers = np.ndarray[Any, Any]
#: The domain of both operators.
MICROSOFT = "com.microsoft"


def write_matmul(draft: Draft, own: GraphLayer, rounded: Rounded) -> str:
    """Replace a MatMul or Gemm by MatMulNBits; return what it became.

    Accuracy level 4 rounds the input to int8 by blocks of the inputs, level 1 computes in float32.
    """
    packing, name, node = _packing(draft, own, rounded), own.layer.name, own.node
    level = draft.runtime.level(packing.bits)
    out, width = own.layer.shape
    codes, scale, zero = _packed(own, rounded.qtensor, packing)
    alpha = node.attributes["alpha"].as_float() if "alpha" in node.attributes else 1.0
    codes = codes.reshape(out, -1, packing.block * packing.bits // 8)
    inputs = _inputs(draft, own, codes, scale * scale.dtype.type(alpha), zero)
    attributes: Attributes = {
        "K": width, "N": out, "bits": packing.bits, "block_size": packing.block, "accuracy_level": level,
    }  # fmt: skip
    product = draft.node("MatMulNBits", [own.data, *inputs], f"{name}.product", attributes, domain=MICROSOFT)
    nodes = [product, *_bias(draft, own, product.outputs[0])]
    draft.put_before(node, nodes)
    draft.replace(own.output, nodes[-1].outputs[0])
    draft.remove(node)
    return f"MatMulNBits, {packing.bits} bits, accuracy level {level}"


def write_gather(draft: Draft, own: GraphLayer, rounded: Rounded) -> str:
    """Replace a Gather by GatherBlockQuantized, which dequantizes the rows asked for; return what it became."""
    packing, name, node = _packing(draft, own, rounded), own.layer.name, own.node
    codes, scale, zero = _packed(own, rounded.qtensor, packing)
    codes = codes[:, : own.layer.shape[1] * packing.bits // 8]
    table, *others = _inputs(draft, own, codes, scale, zero)
    attributes: Attributes = {
        "bits": packing.bits, "block_size": packing.block, "gather_axis": 0, "quantize_axis": 1,
    }  # fmt: skip
    inputs = [table, own.data, *others]
    made = draft.node("GatherBlockQuantized", inputs, f"{name}.rows", attributes, domain=MICROSOFT)
    draft.put_before(node, [made])
    draft.replace(own.output, made.outputs[0])
    draft.remove(node)
    return f"GatherBlockQuantized, {packing.bits} bits"


def _packing(draft: Draft, own: GraphLayer, rounded: Rounded) -> Packing:
    found = packing_of(QuantizedLayer(own.layer, rounded.qtensor.scheme), draft.runtime)
    assert found is not None  # form_of asked before
    return found


def _inputs(draft: Draft, own: GraphLayer, codes: Numbers, scale: Numbers, zero: Numbers | None) -> list[ir.Value]:
    name, near = own.layer.name, own.node
    made = [draft.codes(own, np.ascontiguousarray(codes)), draft.constant(f"{name}.scale", scale, near=near)]
    return made if zero is None else [*made, draft.constant(f"{name}.zero_point", zero, near=near)]


def _packed(own: GraphLayer, qtensor: QTensor, packing: Packing) -> tuple[Numbers, Numbers, Numbers | None]:
    """Return codes (out, bytes), scales (out, blocks) and packed zero points (out, bytes) of whole blocks."""
    form, (out, width) = qtensor.scheme.format, qtensor.shape
    assert isinstance(form, Int)  # packing_of asked before
    middle = 1 << (packing.bits - 1)
    shift = middle if form.signed else 0
    blocks = -(-width // packing.block)
    codes = np.full((out, blocks * packing.block), middle, np.uint8)
    codes[:, :width] = to_numpy(qtensor.codes).astype(np.int16) + shift
    dtype = own.weight.const_value.dtype  # type: ignore[union-attr]
    scale = _by_block(stored_scale(qtensor.scale, dtype, own.layer.name), (out, blocks))
    zero = np.zeros((1, 1)) if qtensor.zero_point is None else to_numpy(qtensor.zero_point)
    zeros = _by_block(zero.astype(np.int16) + shift, (out, blocks))
    usual = bool(np.all(zeros == middle))
    packed = None if usual else np.asarray(pack(zeros.astype(np.uint8), packing.bits))
    return np.asarray(pack(codes, packing.bits)), scale, packed


def _by_block(numbers: Numbers, shape: tuple[int, int]) -> Numbers:
    """Return parameters that hold for rows, or for all, once for each block."""
    return np.ascontiguousarray(np.broadcast_to(numbers, shape))


def _bias(draft: Draft, own: GraphLayer, product: ir.Value) -> list[ir.Node]:
    """Return the nodes that add what a Gemm adds."""
    node = own.node
    if len(node.inputs) < 3 or node.inputs[2] is None:
        return []
    added, nodes = node.inputs[2], []
    beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
    if beta != 1.0:
        dtype = own.weight.const_value.dtype.numpy()  # type: ignore[union-attr]
        factor = draft.constant(f"{own.layer.name}.beta", np.asarray(beta, dtype), near=node)
        nodes.append(draft.node("Mul", [added, factor], f"{own.layer.name}.bias"))
        added = nodes[0].outputs[0]
    return [*nodes, draft.node("Add", [product, added], f"{own.layer.name}.result")]
