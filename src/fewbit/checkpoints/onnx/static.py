"""A layer between Q/DQ pairs: its input rounded by a fixed range, its weight as codes, its bias as runtimes want it.

The operator stays what it was; a runtime computes DQ(x) * DQ(w) in integers where it knows how.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from fewbit.checkpoints.onnx.bias import put_int32, widened
from fewbit.checkpoints.onnx.draft import Draft
from fewbit.checkpoints.onnx.rounding import round_input
from fewbit.checkpoints.onnx.weight import StoredWeight, dequantized, stored_weight
from fewbit.formats.minifloat import Float
from fewbit.interfaces import QuantizedLayer
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import Rounded
from fewbit.schemes.granularity import PerGroup


def write_static(draft: Draft, own: GraphLayer, rounded: Rounded) -> str:
    """Put Q/DQ pairs around a layer; return what it became."""
    assert rounded.activations.input is not None
    given = round_input(draft, own, rounded.activations.input)
    quantized = QuantizedLayer(own.layer, rounded.qtensor.scheme, given.scheme)
    integers = draft.runtime.computes_in_integers(quantized)
    dtype = own.weight.const_value.dtype  # type: ignore[union-attr]
    # Products of the scales of float16 models do not fit float16.
    with_bias = integers and draft.runtime.bias == "int32" and dtype == ir.DataType.FLOAT
    qtensor = widened(draft, own, rounded.qtensor, given) if with_bias else rounded.qtensor
    weight = stored_weight(
        own,
        qtensor,
        unsigned=own.layer.name in draft.unsigned,
        whole_bytes=not isinstance(qtensor.scheme.granularity, PerGroup),
    )
    if with_bias:
        put_int32(draft, own, np.asarray(given.scale, np.float32).reshape(()) * weight.scale)
    own.node.replace_input_with(
        own.weight_index, put_weight(draft, own, weight, given_float8=isinstance(given.scheme.format, Float))
    )
    return "QDQ" if integers else "QDQ, computed in float"


def put_weight(draft: Draft, own: GraphLayer, weight: StoredWeight, *, given_float8: bool) -> ir.Value:
    """Return the dequantized weight."""
    if not given_float8 or draft.runtime.float8_products:
        return dequantized(draft, own, weight)
    # onnxruntime 1.31 makes an integer product of two DequantizeLinear of float8, and then refuses to load it.
    name, node = own.layer.name, own.node
    codes, scale = draft.codes(own, weight.codes), weight.scale
    if weight.axis is not None:
        scale = scale.reshape([-1 if axis == weight.axis else 1 for axis in range(weight.codes.ndim)])
    wide = draft.node("Cast", [codes], f"{name}.units", {"to": int(ir.DataType.FLOAT)})
    made = draft.node(
        "Mul", [wide.outputs[0], draft.constant(f"{name}.scale", scale, near=node)], f"{name}.dequantized"
    )
    draft.put_before(node, [wide, made])
    return made.outputs[0]
