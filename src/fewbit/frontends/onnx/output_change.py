"""How far the outputs of a changed graph are from what they were, and whether that is within roundings.

Relative: |after - before| / |before| over all outputs. Same: |a - b| <= n eps (|a| + mean |a|) everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fewbit.frontends.onnx.batches import Numbers

#: How many times as far a wrong change must lead as the right one, for that to be proven right.
CLEARLY = 16.0


def output_change(before: Mapping[str, Numbers], after: Mapping[str, Numbers]) -> float:
    """Return it; 0 where both are equal, infinity where they have other shapes."""
    moved = whole = 0.0
    for name, old in before.items():
        new = after[name]
        if old.shape != new.shape:
            return float("inf")
        if old.dtype.kind == "f":
            moved += float(np.square(new.astype(np.float64) - old).sum())
            whole += float(np.square(old.astype(np.float64)).sum())
    return (moved / whole) ** 0.5 if whole else 0.0


def same(expected: Mapping[str, Numbers], found: Mapping[str, Numbers], roundings: float) -> bool:
    """Whether all outputs are equal but for so many roundings."""
    return all(_close(own, found[name], roundings) for name, own in expected.items())


def _close(a: Numbers, b: Numbers, roundings: float) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.dtype.kind != "f" or not a.size:
        return bool(np.array_equal(a, b))
    # Magnitudes beside the mean magnitude: a few huge activations must not hide what happens to the rest.
    scale = np.abs(a) + np.abs(a).mean()
    return bool((np.abs(a - b) <= roundings * np.finfo(a.dtype).eps * scale).all())
