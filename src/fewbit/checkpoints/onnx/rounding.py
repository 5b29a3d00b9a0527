"""Roundings by fixed ranges as pairs of QuantizeLinear and DequantizeLinear, each value rounded once for all readers.

Q: codes = saturate(round(x / s) + z). It divides where fewbit multiplies by 1 / s: codes differ by one, on ties.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from fewbit.activation import Activation
from fewbit.checkpoints.onnx.draft import Draft
from fewbit.checkpoints.onnx.element_type import ElementType, element_type
from fewbit.errors import CheckpointError
from fewbit.formats.integer import Int
from fewbit.formats.scale_type import scale_fits
from fewbit.numerics.namespace import to_numpy
from fewbit.onnx_graph.limits import limits_of
from fewbit.schemes.notation import input_scheme_to_text
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
    rounded = _pair(draft, value, activation, value.dtype or ir.DataType.FLOAT)
    draft.replace(value, rounded, but=_quantizer(rounded))


def round_input(draft: Draft, node: ir.Node, place: int, activation: Activation, dtype: ir.DataType) -> None:
    """Round what `node` reads at `place`, unless it is rounded so already."""
    value = node.inputs[place]
    assert value is not None
    parameters = _parameters(draft, activation, dtype)
    if draft.rounding.get(id(value)) != _key(parameters):
        node.replace_input_with(place, _pair(draft, value, activation, dtype))


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


def _pair(draft: Draft, value: ir.Value, activation: Activation, dtype: ir.DataType) -> ir.Value:
    """Return what DequantizeLinear makes of the codes of `value`."""
    parameters = _parameters(draft, activation, dtype)
    key = (id(value), *_key(parameters))
    if key not in draft.rounded:
        element, scale, zero = parameters
        own = [draft.constant(f"{value.name}/scale", scale), draft.constant(f"{value.name}/zero_point", zero)]
        source = _before_absorbed(draft, value, element, (float(scale), int(zero) if zero.dtype.kind in "iu" else 0))
        to_codes = draft.node("QuantizeLinear", [source, *own], f"{value.name}/codes")
        back = draft.node("DequantizeLinear", [to_codes.outputs[0], *own], f"{value.name}/rounded")
        draft.put_after(value, [to_codes, back])
        draft.rounded[key] = back.outputs[0]
        draft.rounding[id(back.outputs[0])] = _key(parameters)
    return draft.rounded[key]


def _quantizer(rounded: ir.Value) -> ir.Node | None:
    maker = rounded.producer()
    codes = maker.inputs[0] if maker is not None else None
    return codes.producer() if codes is not None else None


def _parameters(draft: Draft, activation: Activation, dtype: ir.DataType) -> tuple[ElementType, Numbers, Numbers]:
    """Return how codes are stored, the scale and the zero point, both of no axes."""
    scheme, what = activation.scheme, f"a rounding by '{input_scheme_to_text(activation.scheme)}'"
    element = element_type(scheme.format, unsigned=draft.runtime.unsigned_inputs)
    scale = stored_scale(activation.scale, dtype, what).reshape(())
    if not isinstance(scheme.format, Int):
        return element, scale, np.zeros((), element.dtype.numpy())
    zero = np.zeros(()) if activation.zero_point is None else to_numpy(activation.zero_point)
    return element, scale, element.stored(np.asarray(zero).reshape(()))


def _key(parameters: tuple[ElementType, Numbers, Numbers]) -> tuple[Any, ...]:
    element, scale, zero = parameters
    return element.dtype, scale.dtype, scale.tobytes(), zero.tobytes()


def _before_absorbed(draft: Draft, value: ir.Value, element: ElementType, parameters: tuple[float, int]) -> ir.Value:
    """Return what a Relu or Clip makes `value` of, where rounding `value` or that gives the same codes."""
    maker = value.producer()
    if maker is None or maker.op_type not in draft.runtime.absorbed or not element.dtype.is_integer():
        return value
    limits = limits_of(maker)
    if limits is None or maker.inputs[0] is None:
        return value
    scale, zero = parameters
    lowest, highest = np.iinfo(element.dtype.numpy()).min, np.iinfo(element.dtype.numpy()).max
    low, high = (np.round(np.float32(limit) / np.float32(scale)) + zero for limit in limits)
    return maker.inputs[0] if low <= lowest and high >= highest else value
