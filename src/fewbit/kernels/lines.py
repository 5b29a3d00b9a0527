"""Numbers as they lie in memory, and where their codes go once a border is around them.

A line is what lies side by side: a row of all channels where those are last, else a row of one channel, or all of its
rows where there is no border.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod
from typing import Any

import numpy as np


@dataclass(frozen=True, slots=True)
class Lines:
    """The lines of samples (samples, channels, *spatial), and those of their padded codes."""

    #: How many numbers a line of the samples has, and how many codes there are before and behind them.
    length: int
    before: int
    behind: int
    #: int64 (lines of codes, 2): which line of the samples it holds, or -1, and which sample it belongs to.
    places: Any
    #: Of the codes as they lie in memory.
    shape: tuple[int, ...]

    @classmethod
    @lru_cache(maxsize=64)
    def of(cls, shape: tuple[int, ...], padding: tuple[tuple[int, int], ...], *, last: bool) -> Lines:
        """Return the lines of samples of `shape`, their channels last in memory or not."""
        samples, channels, *sizes = shape
        wide = [size + sum(both) for size, both in zip(sizes, padding, strict=True)]
        padded = (samples, *wide, channels) if last else (samples, channels, *wide)
        images, unit = (samples, channels) if last else (samples * channels, 1)
        if not last and wide == sizes:
            sizes, wide, padding = [prod(sizes)], [prod(sizes)], ((0, 0),)
        source = np.full((images, *wide[:-1]), -1)
        inside = [slice(before, before + size) for size, (before, _) in zip(sizes[:-1], padding[:-1], strict=True)]
        source[:, *inside] = np.arange(images * prod(sizes[:-1])).reshape(images, *sizes[:-1])
        places = np.stack([source.reshape(-1), np.repeat(np.arange(samples), source.size // samples)], axis=1)
        before, behind = (size * unit for size in padding[-1])
        return cls(sizes[-1] * unit, before, behind, places, padded)
