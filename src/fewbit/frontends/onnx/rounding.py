"""An `Activation` as plain float operators of a graph: nothing in it makes a runtime compute with integers.

units = clip(round(x * (1 / s)) + z) - z, or the nearest float8; x' = units * s. A range of the moment comes from
ReduceMin and ReduceMax. The same float32 operations in the same order as `Activation.rounded`: equal to the bit.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import numpy as np
import onnx_ir as ir

from fewbit.activation import Activation
from fewbit.formats.cast import Cast
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import Float
from fewbit.frontends.onnx.nodes import Nodes, Numbers
from fewbit.numerics.namespace import SMALLEST_NORMAL
from fewbit.ranges.absmax import AbsMax
from fewbit.ranges.minmax import MinMax
from fewbit.schemes.granularity import PerGroup, PerTensor, PerToken
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import Scheme


@dataclass(frozen=True, slots=True)
class Place:
    """What is known of the value that is rounded."""

    dtype: ir.DataType = ir.DataType.FLOAT
    #: How many axes follow that of the channels; then the first axis counts samples, and a sample is a token.
    spatial: int = 0
    #: The axis that a token lies along, where there are no spatial ones.
    token: int = -1


def rounding_problem(scheme: Scheme) -> str | None:
    """Return why a graph of float operators cannot round an input or output by `scheme`, with the remedy."""
    text = input_scheme_to_text(scheme)
    if not isinstance(scheme.format, Int | Float | Cast) or scheme.scale_scheme is not None:
        return f"inputs and outputs of an ONNX graph cannot be rounded to {text} in this version; use int8 or e4m3"
    if scheme.static or not scheme.scaled:
        return None
    if scheme.ranging not in (AbsMax(), MinMax()):
        return f"{text}: a graph does not search for its range while it runs; use absmax or minmax, or add 'static'"
    if scheme.scale_type not in (None, "float32"):
        return f"{text}: scales that are made while a graph runs are float32, not {scheme.scale_type}"
    return None


def round_value(nodes: Nodes, value: str, activation: Activation, place: Place) -> str:
    """Append what rounds `value`, and return what the result is called; the last node makes it."""
    scheme = activation.scheme
    wide = value if place.dtype == ir.DataType.FLOAT else nodes.add("Cast", value, to=int(ir.DataType.FLOAT))
    if isinstance(scheme.format, Cast):
        result = _cast(nodes, wide, scheme.format)
        return result if wide == value else nodes.add("Cast", result, to=int(place.dtype))
    grouped = isinstance(scheme.granularity, PerGroup)
    rows = wide
    if isinstance(scheme.granularity, PerGroup):
        rows = nodes.add("Reshape", wide, nodes.constant(np.asarray([-1, scheme.granularity.size], np.int64)))
    if activation.scale is None:
        scale, inverse, zero = _parameters(nodes, rows, scheme, place)
    else:
        fixed = np.asarray(activation.scale, np.float32)
        scale, inverse = (nodes.constant(_spread(own, place)) for own in (fixed, np.float32(1.0) / fixed))
        shift = activation.zero_point
        zero = None if shift is None else nodes.constant(_spread(np.asarray(shift, np.float32), place))
    result = nodes.add("Mul", _units(nodes, nodes.add("Mul", rows, inverse), zero, scheme), scale)
    if grouped:
        result = nodes.add("Reshape", result, nodes.add("Shape", wide))
    return result if wide == value else nodes.add("Cast", result, to=int(place.dtype))


def _cast(nodes: Nodes, values: str, cast: Cast) -> str:
    """Append the cast there and back, which saturates."""
    bounded = nodes.add("Clip", values, nodes.constant(-cast.largest), nodes.constant(cast.largest))
    narrow = nodes.add("Cast", bounded, to=int(ir.DataType[cast.dtype.upper()]))
    return nodes.add("Cast", narrow, to=int(ir.DataType.FLOAT))


def _spread(numbers: Numbers, place: Place) -> Numbers:
    """Return numbers of channels beside their spatial axes."""
    numbers = np.asarray(numbers)
    return numbers.reshape(-1, *(1 for _ in range(place.spatial))) if numbers.ndim else numbers


def _units(nodes: Nodes, scaled: str, zero: str | None, scheme: Scheme) -> str:
    """Append what rounds values in units of the scale; with a zero point `code - zero point`."""
    form = scheme.format
    if isinstance(form, Float):
        return _nearest_float(nodes, scaled, form)
    assert isinstance(form, Int)  # see `rounding_problem`
    limits = nodes.constant(form.qmin), nodes.constant(form.qmax)
    whole = nodes.add("Round", scaled)
    if zero is None:
        return nodes.add("Clip", whole, *limits)
    return nodes.add("Sub", nodes.add("Clip", nodes.add("Add", whole, zero), *limits), zero)


def _nearest_float(nodes: Nodes, values: str, form: Float) -> str:
    """Append what rounds to the nearest level, saturated.

    2^e is the power of two at or below |x|; the logarithm may miss it by one, which two comparisons mend.
    """
    constant = nodes.constant
    magnitude = nodes.add("Clip", nodes.add("Abs", values), constant(0.0), constant(form.maximum))
    bounded = nodes.add("Max", magnitude, constant(form.smallest_normal))
    exponent = nodes.add("Floor", nodes.add("Mul", nodes.add("Log", bounded), constant(1.0 / log(2.0))))
    power = nodes.add("Pow", constant(2.0), exponent)
    half = nodes.add("Mul", power, constant(0.5))
    power = nodes.add("Where", nodes.add("Greater", power, bounded), half, power)
    double = nodes.add("Mul", power, constant(2.0))
    power = nodes.add("Where", nodes.add("LessOrEqual", double, bounded), double, power)
    step = nodes.add("Mul", power, constant(2.0**-form.mantissa))
    rounded = nodes.add("Mul", nodes.add("Round", nodes.add("Div", magnitude, step)), step)
    return nodes.add("Mul", rounded, nodes.add("Sign", values))


def _parameters(nodes: Nodes, rows: str, scheme: Scheme, place: Place) -> tuple[str, str, str | None]:
    """Append what computes scale, its reciprocal and the zero point of the values at hand."""
    axes = _axes(scheme, place)
    low = None
    if scheme.symmetric:
        span, reach = nodes.reduce("ReduceMax", nodes.add("Abs", rows), axes), scheme.format.reach
    else:
        low = nodes.add("Min", nodes.reduce("ReduceMin", rows, axes), nodes.constant(0.0))
        high = nodes.add("Max", nodes.reduce("ReduceMax", rows, axes), nodes.constant(0.0))
        span, reach = nodes.add("Sub", high, low), float(scheme.grid.integer.qmax - scheme.grid.integer.qmin)
    scale = nodes.add("Mul", span, nodes.constant(1.0 / reach))
    empty = nodes.add("Less", scale, nodes.constant(SMALLEST_NORMAL))
    one = nodes.constant(1.0)
    scale = nodes.add("Where", empty, one, scale)
    inverse = nodes.add("Div", one, scale)
    if low is None:
        return scale, inverse, None
    integer = scheme.grid.integer
    limits = nodes.constant(integer.qmin), nodes.constant(integer.qmax)
    place_of_zero = nodes.add("Round", nodes.add("Mul", nodes.add("Neg", low), inverse))
    return scale, inverse, nodes.add("Clip", nodes.add("Add", place_of_zero, limits[0]), *limits)


def _axes(scheme: Scheme, place: Place) -> list[int] | None:
    """Return the axes that share a range; `None`: all."""
    if scheme.granularity == PerTensor():
        return None
    if isinstance(scheme.granularity, PerToken) and place.spatial:
        return list(range(1, place.spatial + 2))
    return [place.token if isinstance(scheme.granularity, PerToken) else -1]
