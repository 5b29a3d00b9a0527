"""Leave zero padding to the convolution behind it: Conv(Pad(x, p), pads=q) = Conv(x, pads=p + q).

What a module pads with an operator of its own is then no value between two layers, which a runtime would have to round.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.onnx_graph.constants import is_constant


def merge_padding(model: ir.Model) -> None:
    """Make each Conv pad what operators before it pad with zeros along spatial axes, in place."""
    for graph in model.graphs():
        for node in graph:
            while (added := _zeros_before(node)) is not None:
                own = node.attributes["pads"].as_ints() if "pads" in node.attributes else [0] * len(added)
                node.attributes["pads"] = ir.AttrInt64s("pads", [a + b for a, b in zip(own, added, strict=True)])
                node.replace_input_with(0, node.inputs[0].producer().inputs[0])  # type: ignore[union-attr]


def pads_alike(node: ir.Node) -> bool:
    """Whether a node puts zeros, or copies of what is there, around its input: both round as the input does."""
    return node.op_type == "Pad" and node.domain in ("", "ai.onnx") and (_mode(node) != "constant" or _is_zero(node))


def _zeros_before(node: ir.Node) -> list[int] | None:
    """Return the zeros before and behind each spatial axis that an operator adds for a Conv; `None`: there is none."""
    automatic = "auto_pad" in node.attributes and node.attributes["auto_pad"].as_string() != "NOTSET"
    if node.op_type != "Conv" or node.domain not in ("", "ai.onnx") or automatic:
        return None
    pad = node.inputs[0].producer() if node.inputs[0] is not None else None
    weight = node.inputs[1]
    if pad is None or pad.graph is not node.graph or weight is None or weight.shape is None:
        return None
    sizes, axes = _numbers(pad, 1), _numbers(pad, 3)
    if not pads_alike(pad) or _mode(pad) != "constant" or sizes is None or axes is None:
        return None
    both = np.zeros((2, len(weight.shape)), np.int64)
    both[:, axes if axes.size else slice(None)] = sizes.reshape(2, -1)
    if both[:, :2].any() or (both < 0).any():
        return None
    return [int(size) for size in both[:, 2:].reshape(-1)]


def _mode(node: ir.Node) -> str:
    return node.attributes["mode"].as_string() if "mode" in node.attributes else "constant"


def _is_zero(node: ir.Node) -> bool:
    filler = _numbers(node, 2)
    return filler is not None and not filler.any()


def _numbers(node: ir.Node, index: int) -> np.ndarray[Any, Any] | None:
    """Return a constant input, nothing where it is left out; `None`: it is not known."""
    value = node.inputs[index] if index < len(node.inputs) else None
    if value is None:
        return np.zeros(0, np.int64)
    return value.const_value.numpy() if is_constant(value) and value.const_value is not None else None
