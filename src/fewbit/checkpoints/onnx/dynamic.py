"""A layer in integers with the range of each input: DynamicQuantizeLinear, then MatMulInteger or ConvInteger.

y = (x' - z_x) (w' - z_w) s_x s_w + b, where s_x and z_x hold the whole input at hand (uint8, asymmetric).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fewbit.checkpoints.onnx.bias import Numbers
from fewbit.checkpoints.onnx.draft import Attributes, Draft
from fewbit.checkpoints.onnx.weight import stored_weight
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import Rounded

#: What an integer convolution is told of the float one.
_WINDOW = ("auto_pad", "dilations", "group", "kernel_shape", "pads", "strides")


def write_dynamic(draft: Draft, own: GraphLayer, rounded: Rounded) -> str:
    """Replace a layer by its integer form; return what it became."""
    name, node = own.layer.name, own.node
    weight = stored_weight(own, rounded.qtensor, unsigned=name in draft.unsigned)
    codes, scale = weight.codes, weight.scale
    if node.op_type == "Gemm":
        scale = scale * scale.dtype.type(_factor(node, "alpha"))
        codes = np.ascontiguousarray(own.arrangement.matrix(codes).T)
    codes_of, scale_of, zero_of = moment_of(draft, own.data, own.weight.const_value.dtype)  # type: ignore[union-attr]
    inputs = [codes_of, draft.codes(own, codes), zero_of]
    if weight.zero is not None and weight.zero.any():
        # One for all, since weights are symmetric here; ConvInteger of onnxruntime takes no more.
        inputs.append(draft.constant(f"{name}.zero_point", weight.zero.reshape(-1)[0].reshape(()), near=node))
    spatial = len(own.arrangement.shape) - 2 if isinstance(own.arrangement, Kernel) else 0
    both = draft.node(
        "Mul", [scale_of, draft.constant(f"{name}.scale", _beside(scale, spatial), near=node)], f"{name}.product_scale"
    )
    kind = "ConvInteger" if node.op_type == "Conv" else "MatMulInteger"
    product = draft.node(kind, inputs, f"{name}.product", _window(node))
    wide = draft.node("Cast", product.outputs, f"{name}.sum", {"to": int(ir.DataType.FLOAT)})
    scaled = draft.node("Mul", [wide.outputs[0], both.outputs[0]], f"{name}.scaled")
    nodes = [both, product, wide, scaled]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = _bias(draft, own, node.inputs[2], spatial)
        nodes += [*bias, draft.node("Add", [scaled.outputs[0], bias[-1].outputs[0]], f"{name}.result")]
    dtype = own.weight.const_value.dtype  # type: ignore[union-attr]
    if dtype != ir.DataType.FLOAT:
        nodes.append(draft.node("Cast", [nodes[-1].outputs[0]], f"{name}.narrow", {"to": int(dtype)}))
    draft.put_before(node, nodes)
    draft.replace(own.output, nodes[-1].outputs[0])
    draft.remove(node)
    return f"DynamicQuantizeLinear, {kind}"


def moment_of(draft: Draft, data: ir.Value, dtype: ir.DataType) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return codes, scale and zero point of `data`, numbers of `dtype`, made once for all that read it."""
    if id(data) not in draft.moments:
        nodes, source = [], data
        if dtype != ir.DataType.FLOAT:
            nodes.append(draft.node("Cast", [data], f"{data.name}/wide", {"to": int(ir.DataType.FLOAT)}))
            source = nodes[0].outputs[0]
        names = [f"{data.name}/{part}" for part in ("codes", "scale", "zero_point")]
        nodes.append(draft.node("DynamicQuantizeLinear", [source], names))
        draft.put_after(data, nodes)
        codes, scale, zero = nodes[-1].outputs
        draft.moments[id(data)] = codes, scale, zero
    return draft.moments[id(data)]


def _bias(draft: Draft, own: GraphLayer, value: ir.Value, spatial: int) -> list[ir.Node]:
    """Return the nodes that make float32 of a bias, times beta and beside the axes of the output; one at least."""
    name, beta = f"{own.layer.name}.bias", _factor(own.node, "beta")
    nodes = [draft.node("Cast", [value], f"{name}.wide", {"to": int(ir.DataType.FLOAT)})]
    if beta != 1.0:
        factor = draft.constant(f"{name}.beta", np.asarray(beta, np.float32), near=own.node)
        nodes.append(draft.node("Mul", [nodes[-1].outputs[0], factor], f"{name}.scaled"))
    if spatial:
        shape = draft.constant(f"{name}.shape", np.asarray([-1] + [1] * spatial, np.int64), near=own.node)
        nodes.append(draft.node("Reshape", [nodes[-1].outputs[0], shape], f"{name}.beside"))
    return nodes


def _beside(numbers: Numbers, spatial: int) -> Numbers:
    """Return float32 numbers of channels beside `spatial` axes that follow the channels."""
    numbers = numbers.astype(np.float32)
    return numbers.reshape(-1, *(1 for _ in range(spatial))) if numbers.ndim and spatial else numbers


def _factor(node: ir.Node, name: str) -> float:
    return node.attributes[name].as_float() if name in node.attributes else 1.0


def _window(node: ir.Node) -> Attributes:
    return {name: node.attributes[name] for name in _WINDOW if name in node.attributes}
