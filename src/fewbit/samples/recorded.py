"""Batches that can be had once only, such as those of a generator: in memory while they are few, else in a file."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.samples.batches import Lazy
from fewbit.samples.carried import IN_MEMORY, Carried


@dataclass(frozen=True, slots=True)
class _Kept:
    """An array that was put away."""

    batch: int
    name: str


class Recorded(Lazy[Any]):
    """Everything that an iterable gives.

    NumPy arrays go into the file beyond `in_memory` bytes; anything else, such as tensors of torch, stays in memory.
    """

    def __init__(self, batches: Iterable[Any], in_memory: int = IN_MEMORY) -> None:
        """Take everything in."""
        self._carried = Carried(in_memory=in_memory)
        weakref.finalize(self, self._carried.close)
        #: The batches with a `_Kept` for each array.
        self._batches: list[Any] = []
        for batch in batches:
            self._batches.append(_each(batch, self._put))

    def __len__(self) -> int:
        return len(self._batches)

    def made(self, index: int) -> Any:
        """Return a batch."""
        return _each(self._batches[index], self._get)

    def _put(self, name: str, value: Any) -> Any:
        if not isinstance(value, np.ndarray) or value.dtype.hasobject:
            return value
        kept = _Kept(len(self._batches), name)
        self._carried.put(kept.batch, name, value.copy())  # a generator may fill the same array again
        return kept

    def _get(self, _: str, value: Any) -> Any:
        return self._carried.get(value.batch, value.name) if isinstance(value, _Kept) else value


def _each(batch: Any, function: Callable[[str, Any], Any]) -> Any:
    """Return a batch with what a function makes of the name and value of each array; other kinds as they are."""
    if type(batch) is dict:
        return {name: function(str(name), value) for name, value in batch.items()}
    if type(batch) is tuple:
        return tuple(function(str(place), value) for place, value in enumerate(batch))
    return function("", batch)
