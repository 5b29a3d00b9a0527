"""Biases as int32 codes by the scales of input and weight: codes = round(b / (s_x s_w)), as integer products add them.

Where a code would overflow, the scale of its row of the weight grows and the row is rounded anew.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.activation import Activation
from fewbit.checkpoints.onnx.draft import Draft
from fewbit.float_bias import FloatBias
from fewbit.formats.integer import Int
from fewbit.integer_bias import IntegerBias
from fewbit.numerics.namespace import to_numpy
from fewbit.onnx_graph.constants import is_constant
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.qtensor import QTensor

#: The largest code: half of int32's range, so that the products have the other half.
LARGEST = 1 << 30
Numbers = np.ndarray[Any, Any]


def bias_of(own: GraphLayer) -> tuple[ir.Node, int, Numbers] | None:
    """Return which node adds the constant bias of a layer at which place, and its numbers, one for each output."""
    node, place = own.node, 2
    if own.bias is None:
        if own.bias_add is None:
            return None
        node = own.bias_add
        place = next(place for place, value in enumerate(node.inputs) if value is not own.output)
    value = node.inputs[place]
    if value is None or not is_constant(value):
        return None
    numbers = value.const_value.numpy().astype(np.float32)  # type: ignore[union-attr]
    beta = node.attributes["beta"].as_float() if "beta" in node.attributes else 1.0
    outputs = own.layer.shape[0]
    if numbers.size not in (1, outputs) or (numbers.size == outputs and numbers.shape[-1:] != (outputs,)):
        return None  # of a Gemm, one for each row
    return node, place, np.broadcast_to(numbers.reshape(-1) * np.float32(beta), (outputs,))


def put_rounded(draft: Draft, own: GraphLayer, bias: IntegerBias | FloatBias) -> None:
    """Let the layer add the float numbers that `bias` stands for."""
    found = bias_of(own)
    if found is not None:
        node, place, _ = found
        value = node.inputs[place]
        assert value is not None
        assert value.const_value is not None
        held = value.const_value
        numbers = np.asarray(to_numpy(bias.dequantize())).reshape(held.shape.numpy()).astype(held.dtype.numpy())
        node.replace_input_with(place, draft.constant(f"{own.layer.name}.bias", numbers, near=node))


def widened(draft: Draft, own: GraphLayer, qtensor: QTensor, given: Activation) -> QTensor:
    """Return the weight with scales so large that the codes of the bias fit, and note by how much they grew."""
    found = bias_of(own)
    if found is None:
        return qtensor
    bias, scale = found[2], np.asarray(to_numpy(qtensor.scale), np.float32)
    needed = np.abs(bias.astype(np.float64)) / (float(given.scale) * LARGEST)  # type: ignore[arg-type]
    needed = needed.reshape(-1, 1) if scale.size > 1 else needed.max().reshape(1, 1)
    if not bool(np.any(needed > scale)):
        return qtensor
    larger = np.where(needed > scale, np.nextafter(needed.astype(np.float32), np.float32(np.inf)), scale)
    assert isinstance(qtensor.scheme.format, Int)
    form, weight = qtensor.scheme.format, np.asarray(to_numpy(qtensor.dequantize()))
    codes = form.to_codes(np.clip(np.round(weight / larger), form.qmin, form.qmax))
    draft.grown[own.layer.name] = float((larger / scale).max())
    return replace(qtensor, codes=codes, scale=larger)


def put_int32(draft: Draft, own: GraphLayer, scale: Numbers) -> None:
    """Let the layer add its bias as int32 codes with `scale`, one or one for each output."""
    found = bias_of(own)
    if found is None:
        return
    node, place, bias = found
    codes = np.clip(np.round(bias.astype(np.float64) / scale.astype(np.float64)), -LARGEST, LARGEST).astype(np.int32)
    name = f"{own.layer.name}.bias"
    zero = np.zeros(scale.shape, np.int32)
    parts = (("codes", codes), ("scale", scale), ("zero_point", zero))
    inputs = [draft.constant(f"{name}_{part}", numbers, near=node) for part, numbers in parts]
    made = draft.node("DequantizeLinear", inputs, f"{name}_dequantized", {"axis": 0} if scale.ndim else None)
    draft.put_before(node, [made])
    node.replace_input_with(place, made.outputs[0])
    if "beta" in node.attributes:
        node.attributes.pop("beta")
