"""How far the outputs of a model are from those of another, by output, over all batches; sums are float64.

SQNR = 10 log10(sum x^2 / sum (x - y)^2); cosine = x.y / (|x| |y|) of each sample, x being the reference.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.errors import NonFiniteError
from fewbit.evaluation.fidelity import decibels

Numbers = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputError:
    """What an output differs by; `None` stands for what its kind of numbers does not have."""

    name: str
    #: Of floats, in dB.
    sqnr: float | None = None
    mean_absolute_difference: float | None = None
    #: The mean over samples, and the least of one.
    cosine: float | None = None
    least_cosine: float | None = None
    #: Of whole numbers and booleans: the share that is the same.
    equal: float | None = None


@dataclass(slots=True)
class OutputSums:
    """Sums over the batches that were seen of one output."""

    name: str
    floats: bool = True
    signal: float = 0.0
    noise: float = 0.0
    difference: float = 0.0
    numbers: int = 0
    same: int = 0
    cosines: float = 0.0
    least: float = math.inf
    samples: int = 0

    def add(self, expected: Numbers, actual: Numbers, samples: int) -> None:
        """Take in a batch of `samples`; both arrays have the same shape."""
        self.floats = expected.dtype.kind == "f"
        self.numbers += expected.size
        if not self.floats:
            self.same += int(np.count_nonzero(expected == actual))
            return
        rows = samples if expected.ndim and len(expected) == samples else 1
        x, y = (values.astype(np.float64).reshape(rows, -1) for values in (expected, actual))
        power, other = (x * x).sum(1), (y * y).sum(1)
        self.signal += float(power.sum())
        self.noise += float(((x - y) ** 2).sum())
        self.difference += float(np.abs(x - y).sum())
        scale = np.sqrt(power) * np.sqrt(other)
        # Of a sample of zeros: 1 where the other is 0 too.
        found = np.where(scale > 0, (x * y).sum(1) / np.where(scale > 0, scale, 1.0), (power == other).astype(float))
        self.cosines += float(found.sum())
        self.least = min(self.least, float(found.min(initial=math.inf)))
        self.samples += rows

    def result(self) -> OutputError:
        """Return what was found."""
        numbers = max(self.numbers, 1)
        if not self.floats:
            return OutputError(name=self.name, equal=self.same / numbers)
        return OutputError(
            name=self.name,
            sqnr=decibels(self.signal, self.noise),
            mean_absolute_difference=self.difference / numbers,
            cosine=self.cosines / max(self.samples, 1),
            least_cosine=self.least,
        )


def require_finite(outputs: Mapping[str, Any], who: str) -> None:
    """Raise `NonFiniteError` where an output of `who` holds NaN or infinity."""
    for name, values in outputs.items():
        if isinstance(values, np.ndarray) and values.dtype.kind == "f" and not np.isfinite(values).all():
            raise NonFiniteError(f"output {name!r} of {who} holds NaN or infinity; it cannot be measured")
