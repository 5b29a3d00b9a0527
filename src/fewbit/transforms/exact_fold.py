"""Proof of a link: a fold of random factors that leaves what its readers put out as it was, where a wrong one does not.

With powers of two f: W_producer / f and W_consumers diag(f) change nothing; with the factors of the columns moved on by
one channel they must.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fewbit.transforms.link import Factors, Link

#: Powers of two that the random factors are, in both directions: far enough to meet a bend such as that of ReLU6.
_POWERS = (4, 5, 6)
#: Roundings by which outputs may differ: powers of two change none, but kernels may add in another order.
_ROUNDINGS = 8.0
#: How many times as far a wrong fold must lead as the right one, for that to be proven right.
_CLEARLY = 16.0


def is_exact(link: Link, change: Callable[[Factors, Factors], float], eps: float) -> bool:
    """Return whether a fold along `link` is exact.

    `change` divides the producer's channels by its first argument, (outputs,), multiplies the columns that read them by
    its second, and returns by how much that changes what the consumers put out; `eps` is that of their type.
    """
    draw, outputs = np.random.RandomState(0), link.outputs
    factors = np.where(link.read, np.exp2(draw.choice(_POWERS, outputs) * draw.choice((-1, 1), outputs)), 1.0)
    right = max(change(own, own) for own in (factors, 1.0 / factors))
    wrong = change(factors, np.roll(factors, 1) * 2.0)
    return right <= _ROUNDINGS * eps and not wrong <= _CLEARLY * right


def change_of(before: np.ndarray[Any, Any], after: np.ndarray[Any, Any]) -> float:
    """Return by how much numbers have changed, the most, as shares of themselves and of the mean magnitude."""
    own, other = (values.astype(np.float64) for values in (before, after))
    scale = np.abs(own) + np.abs(own).mean()
    return float((np.abs(other - own) / np.where(scale > 0, scale, 1.0)).max(initial=0.0))
