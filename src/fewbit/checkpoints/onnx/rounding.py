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
    rounded = _pair(draft, value, activation, value.dtype or ir.DataType.FLOAT)
    draft.replace(value, rounded, but=_quantizer(rounded))


def round_input(draft: Draft, node: ir.Node, place: int, activation: Activation, dtype: ir.DataType) -> None:
    """Round what `node` reads at `place`, unless it is rounded so already."""
    value = node.inputs[place]
    assert value is not None
    parameters = _parameters(draft, value, activation, dtype)
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
    parameters = _parameters(draft, value, activation, dtype)
    key = (id(value), *_key(parameters))
    if key not in draft.rounded:
        _, scale, zero = parameters
        own = [draft.constant(f"{value.name}/scale", scale), draft.constant(f"{value.name}/zero_point", zero)]
        maker = value.producer()
        source = maker.inputs[0] if maker is not None and absorbs(activation, maker, draft.runtime) else value
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


def _parameters(
    draft: Draft, value: ir.Value, activation: Activation, dtype: ir.DataType
) -> tuple[ElementType, Numbers, Numbers]:
    """Return how codes are stored, the scale and the zero point, both of no axes."""
    scheme = activation.scheme
    element = element_type(scheme.format, unsigned=draft.runtime.unsigned_inputs)
    scale = stored_scale(activation.scale, dtype, f"value {value.name}").reshape(())
    if not isinstance(scheme.format, Int):
        return element, scale, np.zeros((), element.dtype.numpy())
    zero = np.zeros(()) if activation.zero_point is None else to_numpy(activation.zero_point)
    return element, scale, element.stored(np.asarray(zero).reshape(()))


def _key(parameters: tuple[ElementType, Numbers, Numbers]) -> tuple[Any, ...]:
    element, scale, zero = parameters
    return element.dtype, scale.dtype, scale.tobytes(), zero.tobytes()


def absorbs(activation: Activation, node: ir.Node, runtime: Runtime) -> bool:
    """Whether rounding behind a Relu or Clip gives the same codes as rounding what goes into it."""
    limits = limits_of(node) if node.op_type in runtime.absorbed else None
    form = activation.scheme.format
    if limits is None or not isinstance(form, Int):
        return False
    zero = 0.0 if activation.zero_point is None else float(activation.zero_point)
    low, high = (np.round(np.float32(limit) / np.float32(activation.scale)) + zero for limit in limits)
    return bool(low <= form.qmin and high >= form.qmax)
