"""Integer products on x86 without VNNI: what they cut off, and by which weights a layer avoids it.

vpmaddubsw adds u8 * s8 of two neighbours in 16 bits: clip(x0 w0 + x1 w1). Nothing can be cut where the positive weights
of a pair add up to 128 at most and the negative ones to -128 at least. Here it is emulated, bit by bit; a processor
with VNNI adds in 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log10
from typing import Any, Literal

import numpy as np

from fewbit.activation import Activation
from fewbit.formats.integer import Int
from fewbit.interfaces import QuantizedLayer
from fewbit.numerics.namespace import to_numpy
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import Rounded
from fewbit.qtensor import QTensor, quantize
from fewbit.runtimes.runtime import Runtime
from fewbit.runtimes.saturation import Saturation

Numbers = np.ndarray[Any, Any]
#: Decibels that weights without a price in time may lose against exact products.
TOLERATED = 1.0
#: Weights of 7 bits: no pair reaches 128.
SEVEN = Int(7, narrow=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which weights a layer gets on a processor that saturates."""

    #: As they are; in 7 bits; or stored as uint8, where that is exact and in integers, if slower.
    weights: Literal["plain", "7 bits", "uint8"]
    #: Pairs of weights that can be cut off.
    pairs: int
    #: Decibels between the outputs and their error, by weights; nothing where no pair can be cut off.
    sqnr: dict[str, float]


def choose(own: GraphLayer, rounded: Rounded, rows: Numbers, saturation: Saturation) -> Choice:
    """Return the weights for a layer, by its error on `rows` (n, in), float32 inputs taken apart as its weight is.

    Of a convolution in groups the rows are those of its first group, and so are the errors.
    """
    pairs = saturating_pairs(own, rounded.qtensor, saturation)
    if not pairs:
        return Choice(weights="plain", pairs=0, sqnr={})
    given = rounded.activations.input
    assert given is not None
    order, out = packed_order(own, saturation), _first_group(own)
    weight = own.arrangement.matrix(own.weight.const_value.numpy())[:out].astype(np.float32)  # type: ignore[union-attr]
    expected = rows.astype(np.float64) @ weight.T.astype(np.float64)
    codes, shift, scale = _unsigned(given, rows)
    narrow = quantize(weight, replace(rounded.qtensor.scheme, format=SEVEN))
    plain = rounded.qtensor.map(lambda own: own[:out] if own.shape[0] > 1 else own)
    made = {"plain": (plain, saturated_product), "7 bits": (narrow, exact_product)}
    if saturation.exact_uint8:
        made["uint8"] = (plain, exact_product)
    sqnr = {}
    for word, (qtensor, product) in made.items():
        units = packed(to_numpy(qtensor.codes), order).astype(np.int32)
        sums = product(packed(codes, order), units) - shift * units.sum(axis=1, dtype=np.int64)
        sqnr[word] = _decibels(expected, sums * (scale * to_numpy(qtensor.scale).reshape(-1).astype(np.float64)))
    return Choice(weights=_best(sqnr), pairs=pairs, sqnr=sqnr)


def can_saturate(own: GraphLayer, rounded: Rounded, runtime: Runtime) -> bool:
    """Whether a layer with rounded inputs has products that some input makes saturate."""
    given, saturation = rounded.activations.input, runtime.saturation
    if saturation is None or given is None:
        return False
    quantized = QuantizedLayer(own.layer, rounded.qtensor.scheme, given.scheme)
    return runtime.computes_in_integers(quantized) and saturating_pairs(own, rounded.qtensor, saturation) > 0


def saturating_pairs(own: GraphLayer, qtensor: QTensor, saturation: Saturation) -> int:
    """Return how many pairs of weights can be cut off by some input."""
    codes = packed(to_numpy(qtensor.codes), packed_order(own, saturation)).astype(np.int32)
    first, second = codes[:, ::2], codes[:, 1::2]
    above = np.maximum(first, 0) + np.maximum(second, 0) > 128
    below = np.minimum(first, 0) + np.minimum(second, 0) < -128
    return int(np.count_nonzero(above | below))


def packed_order(own: GraphLayer, saturation: Saturation) -> Numbers:
    """Return the columns of the weight (out, in), two for each pair; -1 is none. No column: there are no pairs.

    A convolution goes over its channels first; a depthwise one has a kernel of its own, which adds in 32 bits.
    """
    arrangement, (out, width) = own.arrangement, own.layer.shape
    if not isinstance(arrangement, Kernel):
        return _even(np.arange(width).reshape(1, width))
    channels = width // arrangement.positions
    if channels == 1 and arrangement.groups == out > 1:
        return np.arange(0)
    order = np.arange(width).reshape(channels, arrangement.positions).T
    alone = saturation.by_position and arrangement.groups == 1
    return _even(order if alone else order.reshape(1, width))


def packed(columns: Numbers, order: Numbers) -> Numbers:
    """Return `columns` (n, in) in the order of `packed_order`, 0 where there is none."""
    return np.pad(columns, ((0, 0), (0, 1)))[:, order]


def exact_product(codes: Numbers, units: Numbers) -> Numbers:
    """Return `codes` (n, in), 0 to 255, times `units` (out, in), added in int64."""
    # Exact in float64, which is faster: sums stay far below 2^53.
    return (codes.astype(np.float64) @ units.T.astype(np.float64)).astype(np.int64)


def saturated_product(codes: Numbers, units: Numbers) -> Numbers:
    """Return the same product with each sum of two neighbours cut to 16 bits; `in` is even."""
    given, weights = codes.astype(np.int32), units.astype(np.int32)
    total = np.zeros((codes.shape[0], units.shape[0]), np.int64)
    for place in range(0, given.shape[1], 2):
        pair = np.multiply.outer(given[:, place], weights[:, place])
        pair += np.multiply.outer(given[:, place + 1], weights[:, place + 1])
        total += np.clip(pair, -(1 << 15), (1 << 15) - 1)
    return total


def _even(order: Numbers) -> Numbers:
    """Return (positions, channels) as one line with an even number of channels, the last of which may be none."""
    return np.pad(order, ((0, 0), (0, order.shape[1] % 2)), constant_values=-1).reshape(-1)


def _best(sqnr: dict[str, float]) -> Literal["plain", "7 bits", "uint8"]:
    if max(sqnr["plain"], sqnr["7 bits"]) < sqnr.get("uint8", -inf) - TOLERATED:
        return "uint8"
    return "plain" if sqnr["plain"] >= sqnr["7 bits"] else "7 bits"


def _first_group(own: GraphLayer) -> int:
    out = own.layer.shape[0]
    return out // own.arrangement.groups if isinstance(own.arrangement, Kernel) else out


def _unsigned(given: Activation, rows: Numbers) -> tuple[Numbers, int, float]:
    """Return the codes of `rows` as uint8 holds them, the one that stands for 0, and the scale."""
    form = given.scheme.format
    assert isinstance(form, Int)
    shift = 128 if form.signed else 0
    if given.scale is None:
        fresh = quantize(rows.reshape(1, -1).astype(np.float32), given.scheme)
        zero = 0 if fresh.zero_point is None else int(fresh.zero_point.reshape(()))
        codes = to_numpy(fresh.codes).reshape(rows.shape).astype(np.int32)
        return codes + shift, zero + shift, float(to_numpy(fresh.scale).reshape(()))
    codes = np.asarray(given.scheme.grid.codes(rows.astype(np.float32), given.scale, given.zero_point), np.int32)
    zero = 0 if given.zero_point is None else int(given.zero_point)
    return codes + shift, zero + shift, float(given.scale)


def _decibels(expected: Numbers, made: Numbers) -> float:
    error = float(np.sum((made - expected) ** 2))
    return 10.0 * log10(float(np.sum(expected**2)) / error) if error else inf
