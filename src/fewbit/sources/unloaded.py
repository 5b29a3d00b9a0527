"""A model without its numbers, and a way to read them one tensor at a time, so that it is never held whole."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fewbit.numerics.namespace import Array


@dataclass(frozen=True, slots=True)
class Unloaded:
    """A model whose parameters have shapes only."""

    #: Buffers that no file holds have their numbers.
    model: Any
    #: Reads a tensor into memory of its own, by its name in the model; tied ones stand under one of their names.
    tensors: Mapping[str, Callable[[], Array]]


@runtime_checkable
class TensorwiseSource(Protocol):
    """A source that can be read tensor by tensor."""

    def unloaded(self) -> Unloaded:
        """Return the model without numbers, and how to read them.

        Raises:
            SourceError: files that do not fill the model, or that hold more than it takes.
            NotYetError: files that have to be read as a whole.

        """
