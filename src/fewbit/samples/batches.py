"""Batches that are read when they are asked for: a sequence like a list of them, of which none stays in memory."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from typing import Any, Protocol, TypeVar, overload

import numpy as np

from fewbit.errors import CalibrationError, NonFiniteError

Numbers = np.ndarray[Any, Any]
Item = TypeVar("Item")


class Lazy(Sequence[Item], ABC):
    """A sequence whose items are made each time they are asked for."""

    @abstractmethod
    def made(self, index: int) -> Item:
        """Return the item at `index`, 0 or more and below the length."""

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        """Return an item, or a list of those of a slice."""
        if isinstance(index, slice):
            return [self.made(place) for place in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"item {index} of {len(self)}")
        return self.made(index % len(self))


class Mapped(Lazy[Item]):
    """What a function makes of each item of a sequence."""

    def __init__(self, function: Callable[[Any], Item], items: Sequence[Any]) -> None:
        self._function, self._items = function, items

    def __len__(self) -> int:
        return len(self._items)

    def made(self, index: int) -> Item:
        """Return what the function makes of an item."""
        return self._function(self._items[index])


class Joined(Lazy[Any]):
    """The items of two sequences, one behind the other."""

    def __init__(self, first: Sequence[Any], second: Sequence[Any]) -> None:
        self._first, self._second = first, second

    def __len__(self) -> int:
        return len(self._first) + len(self._second)

    def made(self, index: int) -> Any:
        """Return an item of either."""
        first = len(self._first)
        return self._first[index] if index < first else self._second[index - first]


class Store(Sized, Protocol):
    """Samples by number, or files that hold some each."""

    #: Of what lies in a file each: their names.
    names: list[str] | None
    #: Of files that hold batches: how many samples each has.
    sizes: list[int] | None
    #: Classes that lie among the samples.
    labels: Numbers | None

    def take(self, places: Sequence[int]) -> Any:
        """Return the samples at `places` as one batch: arrays by input name, a tuple of arrays, or one array."""


class Cut(Lazy[Any]):
    """Batches of `size` samples of a store, the last one perhaps smaller."""

    def __init__(self, store: Store, places: Sequence[int], size: int) -> None:
        self._store, self._places, self._size = store, places, size

    def __len__(self) -> int:
        return (len(self._places) + self._size - 1) // self._size

    def made(self, index: int) -> Any:
        """Return a batch."""
        start = index * self._size
        return self._store.take(self._places[start : start + self._size])


def spread(total: int, count: int) -> Sequence[int]:
    """Return `count` places among `total` at even distances: sorted files may have what is alike side by side.

    >>> spread(10, 4)
    [0, 2, 5, 7]
    """
    return range(total) if count >= total else [place * total // count for place in range(count)]


def arrays_in(batch: Any) -> Iterable[tuple[str | None, Any]]:
    """Yield the arrays of a batch with their names, `None` where they have none."""
    if isinstance(batch, Mapping):
        yield from batch.items()
    else:
        yield from ((None, array) for array in (batch if isinstance(batch, tuple) else (batch,)))


def samples_in(batch: Any) -> int:
    """Return how many samples a batch has: the first axis of its first array."""
    first = next((array for _, array in arrays_in(batch)), None)
    return int(first.shape[0]) if first is not None and len(first.shape) else 1


def first_sample(batch: Any) -> Any:
    """Return a batch of the first sample of a batch."""
    if isinstance(batch, Mapping):
        return {name: array[:1] for name, array in batch.items()}
    return tuple(array[:1] for array in batch) if isinstance(batch, tuple) else batch[:1]


def require_numbers(numbers: Numbers, what: str, places: Sequence[int]) -> None:
    """Raise `NonFiniteError` for NaN in the samples at `places`; infinity is no error, since it masks attention."""
    if numbers.dtype.kind != "f":
        return
    bad = np.isnan(numbers).any(axis=tuple(range(1, numbers.ndim)))
    if bad.any():
        raise NonFiniteError(f"{what} holds NaN in sample {places[int(np.argmax(bad))]}; repair it, or leave it out")


def same_count(counts: Mapping[str, int], where: object) -> int:
    """Return the number of samples that all arrays of a file have.

    Raises:
        CalibrationError: they have different ones, or none.

    """
    if len(set(counts.values())) > 1:
        held = ", ".join(f"{name!r} {count}" for name, count in counts.items())
        raise CalibrationError(f"{where} holds different numbers of samples ({held}); the first axis must be theirs")
    count = next(iter(counts.values()), 0)
    if not count:
        raise CalibrationError(f"{where} holds no sample; give some")
    return count
