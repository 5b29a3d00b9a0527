"""How far the output of a changed model is from what it was: |after - before| / |before|, over all of its tensors.

Roundings of 16-bit models hide small mistakes from any tolerance; beside what a change made wrong on purpose does, the
right one must be next to nothing.
"""

from __future__ import annotations

from typing import Any

from fewbit.frontends.torch.calls import tensors_in

#: How many times as far a wrong change must lead as the right one, for that to be proven right.
CLEARLY = 16.0


def output_change(before: Any, after: Any) -> float:
    """Return it; 0 where both are equal, infinity where they have other shapes."""
    moved = whole = 0.0
    for old, new in zip(tensors_in(before), tensors_in(after), strict=False):
        if old.shape != new.shape:
            return float("inf")
        if old.dtype.is_floating_point:
            moved += float((new.double() - old.double()).square().sum())
            whole += float(old.double().square().sum())
    return float((moved / whole) ** 0.5) if whole else 0.0
