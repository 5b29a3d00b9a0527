"""Signal to quantization noise: SQNR = 10 log10(sum x^2 / sum (x - q)^2), in dB; infinite where nothing is lost."""

from __future__ import annotations

import math

from fewbit.numerics.namespace import Array, array_namespace


def decibels(signal: float, noise: float) -> float:
    """Return the ratio of two powers in dB.

    >>> decibels(100.0, 1.0)
    20.0
    """
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


def sqnr(original: Array, quantized: Array) -> float:
    """Return the SQNR in dB of `quantized` against `original`, arrays of one shape; sums are float64."""
    xp = array_namespace(original)
    original = xp.astype(original, xp.float64)
    noise = original - xp.astype(quantized, xp.float64)
    return decibels(float(xp.sum(original * original)), float(xp.sum(noise * noise)))


def output_power(weight: Array, moment: Array) -> float:
    """Return the mean of |x @ weight.T|^2 over inputs x of this second moment (in, in): tr(W H W^T).

    For a difference of weights it is the noise that the difference makes: no input is needed again.
    """
    xp = array_namespace(weight)
    weight = xp.astype(weight, xp.float32, copy=False)
    return float(xp.sum(xp.vecdot(xp.matmul(weight, moment), weight), dtype=xp.float64))
