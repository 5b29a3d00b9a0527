"""A weight as codes behind a DequantizeLinear, by tensor, axis or blocks of one; what reads it stays as it was."""

from __future__ import annotations

from fewbit.checkpoints.onnx.draft import Draft
from fewbit.checkpoints.onnx.weight import dequantized, stored_weight
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import Rounded


def write_weight_only(draft: Draft, own: GraphLayer, rounded: Rounded) -> str:
    """Let a layer read its weight dequantized; return what it became."""
    weight = stored_weight(own, rounded.qtensor, whole_bytes=False)
    own.node.replace_input_with(own.weight_index, dequantized(draft, own, weight))
    block = f", blocks of {weight.block}" if weight.block else ""
    return f"DequantizeLinear{block}"
