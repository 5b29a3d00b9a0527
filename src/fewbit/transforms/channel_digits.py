"""Which channel each input of a reader is, seen in runs in which channels are multiplied by powers of two.

In run t channel c is multiplied by 2^e, e from the t-th octal digit of c; a reader that gets x_j 2^e in its place j
reads channel c there.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any, TypeAlias

import numpy as np

from fewbit.transforms.link import Channels

Numbers: TypeAlias = np.ndarray[Any, Any]

#: What the digits of a channel become; none is 0, which is what a channel has that the producer does not reach.
_EXPONENTS = np.asarray([-4, -3, -2, -1, 1, 2, 3, 4])
#: Roundings by which a number may differ from its multiple.
_ROUNDINGS = 8.0


def read_channels(size: int, run: Callable[[Numbers], Mapping[Any, Numbers]]) -> Channels | None:
    """Return the channel of each input, -1: none; `None`: the readers do not agree, or get something else.

    `run` takes the exponent of each of `size` channels and returns what readers get, (rows, inputs) each.
    """
    plain = run(np.zeros(size))
    found: dict[Hashable, Any] = dict.fromkeys(plain, 0)
    lost: dict[Hashable, Any] = dict.fromkeys(plain, False)
    for place in range(max(1, (max(size - 1, 1).bit_length() + 2) // 3)):
        seen = run(_EXPONENTS[np.arange(size) // 8**place % 8])
        for own, before in plain.items():
            exponents = _grown(before, seen[own])
            if exponents is None:
                return None
            lost[own] = lost[own] | (exponents == 0)
            found[own] = found[own] + np.searchsorted(_EXPONENTS, exponents) * 8**place
    read = [np.where(lost[own] | (found[own] >= size), -1, found[own]).astype(np.int64) for own in plain]
    same = all(np.array_equal(own, read[0]) for own in read)
    return read[0] if same and read[0].max() >= 0 else None


def _grown(plain: Numbers, seen: Numbers) -> Numbers | None:
    """Return by which power of two each column has grown, 0 for one of zeros; `None`: by something else."""
    before, after = (np.abs(own).max(axis=0).astype(np.float64) for own in (plain, seen))
    live = (before > 0) & (after > 0)
    exponents: Numbers = np.rint(np.log2(np.where(live, after, 1.0) / np.where(live, before, 1.0)))
    expected = plain * np.exp2(exponents).astype(plain.dtype)
    near = np.abs(seen - expected) <= _ROUNDINGS * np.finfo(plain.dtype).eps * np.abs(expected)
    known = np.isin(exponents, (0, *_EXPONENTS))
    return exponents.astype(np.int64) if bool(near.all() and known.all()) else None
