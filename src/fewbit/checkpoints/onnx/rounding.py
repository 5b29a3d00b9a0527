"""Roundings by fixed ranges as pairs of QuantizeLinear and DequantizeLinear, each value rounded once for all readers.

Q: codes = saturate(round(x / s) + z). It divides where fewbit multiplies by 1 / s: codes differ by one, on ties.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.activation import Activation
from fewbit.checkpoints.onnx.draft import Draft
from fewbit.checkpoints.onnx.element_type import element_type
from fewbit.errors import CheckpointError
from fewbit.formats.integer import Int
from fewbit.formats.scale_type import scale_fits
from fewbit.numerics.namespace import to_numpy
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.limits import limits_of
from fewbit.runtimes.runtime import Runtime
from fewbit.schemes.scheme import ScaleType

#: Types that scales are stored in: those of the numbers that they scale.
_SCALES: dict[ir.DataType, ScaleType] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.BFLOAT16: "bfloat16",
}
Numbers = np.ndarray[Any, Any]


def round_value(draft: Draft, value: ir.Value, activation: Activation) -> None:
    """Round `value` for all that read it."""
    first, rounded = _pair(draft, value, activation, value.dtype or draft.dtype)
    draft.put_after(value, [first, rounded])
    draft.replace(value, rounded.outputs[0], but=first)
    draft.given[id(rounded.outputs[0])] = activation


def round_input(draft: Draft, own: GraphLayer, activation: Activation) -> Activation:
    """Round what a layer reads; return by what it is rounded."""
    dtype = own.weight.const_value.dtype  # type: ignore[union-attr]
    return round_at(draft, own.node, own.data_index, activation, dtype, own.layer.name)


def round_at(
    draft: Draft, node: ir.Node, index: int, activation: Activation, dtype: ir.DataType, name: str
) -> Activation:
    """Round input `index` of `node` for `name`; return by what, which is another where the value itself is rounded.

    onnxruntime makes one pair of two that follow one another, and not one that computes the same.
    """
    value = node.inputs[index]
    assert value is not None
    if id(value) in draft.given:
        given = draft.given[id(value)]
        if _key(given) != _key(activation):
            draft.notes.append(f"{name}: its input is rounded where it is made, and not once more by its own range")
        return given
    # onnxruntime looks for the pair in the graph of the layer only.
    outer = node.graph is not value.graph
    key = (id(value), id(node.graph) if outer else 0, *_key(activation))
    if key not in draft.pairs:
        first, rounded = _pair(draft, value, activation, dtype, near=node if outer else None)
        if outer:
            draft.put_before(node, [first, rounded])
        else:
            draft.put_after(value, [first, rounded])
        draft.pairs[key] = rounded.outputs[0]
    node.replace_input_with(index, draft.pairs[key])
    return activation


def stored_scale(scale: Any, dtype: ir.DataType, what: str) -> Numbers:
    """Return scales as numbers of `dtype`, the type of what they scale.

    Raises:
        CheckpointError: that type does not hold one of them exactly, or is none that scales have.

    """
    kept = np.asarray(to_numpy(scale), np.float32)
    if dtype not in _SCALES:
        raise CheckpointError(f"{what} is {dtype.name.lower()}, for which ONNX has no rounding; convert it to float32")
    if not bool(np.all(scale_fits(kept, _SCALES[dtype]))):
        raise CheckpointError(
            f"{what}: {_SCALES[dtype]} does not hold its scales exactly (least {kept.min():.3g}); "
            f"quantize with dtype='{_SCALES[dtype]}' (--dtype), or convert the model to float32"
        )
    return kept.astype(dtype.numpy())


def _pair(
    draft: Draft, value: ir.Value, activation: Activation, dtype: ir.DataType, *, near: ir.Node | None = None
) -> tuple[ir.Node, ir.Node]:
    """Return QuantizeLinear and DequantizeLinear of `value`, or of what goes into a Relu that they do the work of."""
    form = activation.scheme.format
    element = element_type(form, unsigned=draft.runtime.unsigned_inputs)
    scale = stored_scale(activation.scale, dtype, f"value {value.name}").reshape(())
    zero = np.zeros((), element.dtype.numpy())
    if isinstance(form, Int):
        zero = element.stored(np.asarray(0 if activation.zero_point is None else to_numpy(activation.zero_point)))
    numbers = {"scale": scale, "zero_point": zero.reshape(())}
    own = [draft.constant(f"{value.name}/{part}", array, near=near) for part, array in numbers.items()]
    first = draft.node("QuantizeLinear", [_source(draft, value, activation), *own], f"{value.name}/codes")
    return first, draft.node("DequantizeLinear", [first.outputs[0], *own], f"{value.name}/rounded")


def _source(draft: Draft, value: ir.Value, activation: Activation) -> ir.Value:
    """Return what is rounded in the place of `value`: what goes into a Relu, unless it is rounded itself.

    onnxruntime makes one pair of two that follow one another.
    """
    maker = value.producer()
    before = maker.inputs[0] if maker is not None and absorbs(activation, maker, draft.runtime) else None
    return value if before is None or id(before) in draft.given else before


def _key(activation: Activation) -> tuple[Any, ...]:
    zero = 0.0 if activation.zero_point is None else float(activation.zero_point)
    return activation.scheme.format, float(activation.scale), zero  # type: ignore[arg-type]


def absorbs(activation: Activation, node: ir.Node, runtime: Runtime) -> bool:
    """Whether rounding behind a Relu or Clip gives the same codes as rounding what goes into it."""
    limits = limits_of(node) if node.op_type in runtime.absorbed else None
    form = activation.scheme.format
    if limits is None or not isinstance(form, Int):
        return False
    zero = 0.0 if activation.zero_point is None else float(activation.zero_point)
    low, high = (np.round(np.float32(limit) / np.float32(activation.scale)) + zero for limit in limits)
    return bool(low <= form.qmin and high >= form.qmax)
