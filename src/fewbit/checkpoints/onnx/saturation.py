"""Integer products of onnxruntime on x86 without VNNI: what they cut off, and by which weights a layer avoids it.

vpmaddubsw adds u8 * s8 of two neighbours in 16 bits: clip(x0 w0 + x1 w1). Nothing can be cut where the positive weights
of a pair add up to 128 at most and the negative ones to -128 at least. Here it is emulated: a processor with VNNI adds
in 32 bits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, log10
from typing import Any, Literal

import numpy as np

from fewbit.activation import Activation
from fewbit.formats.integer import Int
from fewbit.numerics.namespace import to_numpy
from fewbit.onnx_graph.arrangement import Kernel
from fewbit.onnx_graph.layers import GraphLayer
from fewbit.onnx_graph.live import Rounded
from fewbit.qtensor import QTensor, quantize

Numbers = np.ndarray[Any, Any]
#: Decibels that weights without a price in time may lose against exact products.
TOLERATED = 1.0
#: Weights of 7 bits: no pair reaches 128.
SEVEN = Int(7, narrow=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """Which weights a layer gets on a processor that saturates."""

    #: As they are; in 7 bits; or stored as uint8, which is exact and slower.
    weights: Literal["plain", "7 bits", "uint8"]
    #: Pairs of weights that can be cut off.
    pairs: int
    #: Decibels between the outputs and their error, by weights; nothing where no pair can be cut off.
    sqnr: dict[str, float]


def choose(own: GraphLayer, rounded: Rounded, rows: Numbers) -> Choice:
    """Return the weights for a layer, by its error on `rows` (n, in), float32 inputs taken apart as its weight is.

    Of a convolution in groups the rows are those of its first group, and so are the errors.
    """
    pairs = saturating_pairs(own, rounded.qtensor)
    if not pairs:
        return Choice(weights="plain", pairs=0, sqnr={})
    given = rounded.activations.input
    assert given is not None
    order, out = packed_order(own), _first_group(own)
    weight = own.arrangement.matrix(own.weight.const_value.numpy())[:out].astype(np.float32)  # type: ignore[union-attr]
    expected = rows.astype(np.float64) @ weight.T.astype(np.float64)
    codes, shift, scale = _unsigned(given, rows)
    narrow = quantize(weight, replace(rounded.qtensor.scheme, format=SEVEN))
    plain = rounded.qtensor.map(lambda own: own[:out] if own.shape[0] > 1 else own)
    made = {"plain": (plain, saturated_product), "7 bits": (narrow, exact_product), "uint8": (plain, exact_product)}
    sqnr = {}
    for word, (qtensor, product) in made.items():
        units = to_numpy(qtensor.codes)[:, order].astype(np.int32)
        sums = product(codes[:, order], units) - shift * units.sum(axis=1, dtype=np.int64)
        sqnr[word] = _decibels(expected, sums * (scale * to_numpy(qtensor.scale).reshape(-1).astype(np.float64)))
    return Choice(weights=_best(sqnr), pairs=pairs, sqnr=sqnr)


def can_saturate(own: GraphLayer, rounded: Rounded) -> bool:
    """Whether a layer with rounded inputs has products that some input makes saturate."""
    given, weight = rounded.activations.input, rounded.qtensor.scheme.format
    integers = given is not None and isinstance(given.scheme.format, Int) and isinstance(weight, Int)
    return integers and saturating_pairs(own, rounded.qtensor) > 0


def saturating_pairs(own: GraphLayer, qtensor: QTensor) -> int:
    """Return how many pairs of weights can be cut off by some input."""
    order = packed_order(own)
    if order.size == 0:
        return 0
    codes = to_numpy(qtensor.codes)[:, order].astype(np.int32)
    even = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2)))
    first, second = even[:, ::2], even[:, 1::2]
    above = np.maximum(first, 0) + np.maximum(second, 0) > 128
    below = np.minimum(first, 0) + np.minimum(second, 0) < -128
    return int(np.count_nonzero(above | below))


def packed_order(own: GraphLayer) -> Numbers:
    """Return the columns of the weight (out, in) in the order in which products pair them; none: it makes no pairs.

    A convolution goes over its channels last; one with a channel a group has a kernel of its own, in 32 bits.
    """
    arrangement, width = own.arrangement, own.layer.shape[1]
    if not isinstance(arrangement, Kernel):
        return np.arange(width)
    channels = width // arrangement.positions
    if arrangement.groups > 1 and channels == 1:
        return np.arange(0)
    return np.arange(width).reshape(channels, arrangement.positions).T.reshape(-1)


def exact_product(codes: Numbers, units: Numbers) -> Numbers:
    """Return `codes` (n, in), 0 to 255, times `units` (out, in), added in int64."""
    # Exact in float64, which is faster: sums stay far below 2^53.
    return (codes.astype(np.float64) @ units.T.astype(np.float64)).astype(np.int64)


def saturated_product(codes: Numbers, units: Numbers) -> Numbers:
    """Return the same product with each sum of two neighbours cut to 16 bits."""
    width = codes.shape[1] + codes.shape[1] % 2
    given = np.pad(codes.astype(np.int32), ((0, 0), (0, width - codes.shape[1])))
    weights = np.pad(units.astype(np.int32), ((0, 0), (0, width - units.shape[1])))
    total = np.zeros((codes.shape[0], units.shape[0]), np.int64)
    for place in range(0, width, 2):
        pair = np.multiply.outer(given[:, place], weights[:, place])
        pair += np.multiply.outer(given[:, place + 1], weights[:, place + 1])
        total += np.clip(pair, -(1 << 15), (1 << 15) - 1)
    return total


def _best(sqnr: dict[str, float]) -> Literal["plain", "7 bits", "uint8"]:
    if max(sqnr["plain"], sqnr["7 bits"]) < sqnr["uint8"] - TOLERATED:
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
