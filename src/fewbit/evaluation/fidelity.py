"""Signal to quantization noise: SQNR = 10 log10(sum x^2 / sum (x - q)^2), in dB; infinite where nothing is lost."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.numerics.namespace import Array, array_namespace, numbers_at_once, to_numpy

#: Columns of a moment that are multiplied at once.
_PANEL = 256


def decibels(signal: float, noise: float) -> float:
    """Return the ratio of two powers in dB.

    >>> decibels(100.0, 1.0)
    20.0
    """
    if noise == 0.0:
        return math.inf
    return 10.0 * math.log10(signal / noise) if signal > 0.0 else -math.inf


@dataclass(frozen=True, slots=True)
class Fidelity:
    """What rounding left of an array (out, in)."""

    #: SQNR in dB.
    sqnr: float
    #: SQNR in dB that a tenth of the rows stays below, and the one that a tenth goes above; rows of zeros do not count,
    #: and `None` says that there are no others.
    rows: tuple[float, float] | None


def fidelity(original: Array, quantized: Array) -> Fidelity:
    """Return what is left of `original` (out, in) in `quantized`; sums are float64.

    >>> fidelity(np.asarray([[4.0, 0.0], [0.0, 2.0]]), np.asarray([[4.0, 0.0], [0.0, 0.0]]))
    Fidelity(sqnr=6.989700043360188, rows=(0.0, inf))
    """
    signal, noise = _row_powers(original, quantized)
    return Fidelity(decibels(float(signal.sum()), float(noise.sum())), _spread(signal, noise))


def _row_powers(original: Array, quantized: Array) -> tuple[Any, Any]:
    """Return the sums of x^2 and of (x - q)^2 over each row, NumPy arrays; what is float64 in between fits a cache."""
    xp = array_namespace(original)
    at_once = max(1, numbers_at_once(original) // max(1, original.shape[1]))
    signal, noise = [], []
    for start in range(0, original.shape[0], at_once):
        own = slice(start, min(start + at_once, original.shape[0]))
        exact = xp.astype(original[own, :], xp.float64)
        error = exact - xp.astype(quantized[own, :], xp.float64)
        signal.append(xp.sum(exact * exact, axis=1))
        noise.append(xp.sum(error * error, axis=1))
    return to_numpy(xp.concat(signal)), to_numpy(xp.concat(noise))


def _spread(signal: Any, noise: Any) -> tuple[float, float] | None:
    shares = np.sort(noise[signal > 0.0] / signal[signal > 0.0])
    if not len(shares):
        return None
    tenth = round(0.1 * (len(shares) - 1))
    return decibels(1.0, float(shares[-1 - tenth])), decibels(1.0, float(shares[tenth]))


def power(values: Array) -> float:
    """Return the sum of the squares of `values`, taken in float64."""
    xp = array_namespace(values)
    exact = xp.astype(values, xp.float64, copy=False)
    return float(xp.sum(exact * exact))


def output_power(weight: Array, moment: Array) -> float:
    """Return the mean of |x @ weight.T|^2 over inputs x of this second moment (in, in): tr(W H W^T).

    For a difference of weights it is the noise that the difference makes: no input is needed again. Moments
    (groups, in, in) are those of the groups of rows of `weight`, one after the other.
    """
    xp = array_namespace(weight)
    weight = xp.astype(weight, xp.float32, copy=False)
    if moment.ndim == 3:
        weight = xp.reshape(weight, (moment.shape[0], -1, moment.shape[1]))
    total = 0.0
    for start in range(0, moment.shape[-1], _PANEL):  # a moment is symmetric: its half is enough
        own = weight[..., start : start + _PANEL]
        near = xp.matmul(own, moment[..., start : start + _PANEL, start:])
        twice = xp.sum(xp.vecdot(near, weight[..., start:]), dtype=xp.float64)
        total += 2.0 * float(twice) - float(xp.sum(xp.vecdot(near[..., : own.shape[-1]], own), dtype=xp.float64))
    return total
