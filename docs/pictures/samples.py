"""Numbers to measure on: three distributions, drawn with fewbit's own seeded noise, so the same on every machine."""

from __future__ import annotations

from collections.abc import Callable
from math import acos, copysign, cos, log, sqrt
from statistics import NormalDist

import numpy as np

from fewbit.numerics.noise import uniform


def _laplace(share: float) -> float:
    return copysign(log(1.0 - 2.0 * abs(share - 0.5)), share - 0.5)


def _student(share: float) -> float:
    """Quantile of Student's t with 4 degrees of freedom, in closed form."""
    both = 4.0 * share * (1.0 - share)
    return copysign(2.0 * sqrt(cos(acos(sqrt(both)) / 3.0) / sqrt(both) - 1.0), share - 0.5)


#: Name, and the inverse of the cumulative distribution.
QUANTILES: dict[str, Callable[[float], float]] = {
    "normal": NormalDist().inv_cdf,
    "Laplace": _laplace,
    "Student-t(4)": _student,
}


def drawn(kind: str, shape: tuple[int, int] = (64, 512)) -> np.ndarray:
    """Return float32 numbers of a distribution."""
    shares = uniform(shape, 1, np.zeros(1, np.float32)).astype(np.float64) + 2.0**-25
    quantile = QUANTILES[kind]
    return np.array([[quantile(share) for share in row] for row in shares.tolist()], np.float32)
