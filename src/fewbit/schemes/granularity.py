"""Which numbers share a scale. Every granularity comes down to a box: the shape that one scale covers.

# weight: (out, in)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from fewbit.errors import SchemeError


class Granularity(Protocol):
    """Which numbers share a scale."""

    @property
    def name(self) -> str:
        """The word for it in notation."""

    def box(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape that one scale covers in an array of `shape`."""


@dataclass(frozen=True, slots=True)
class PerTensor:
    """One scale for everything."""

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return "tensor"

    def box(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the whole shape."""
        return shape


@dataclass(frozen=True, slots=True)
class PerChannel:
    """One scale for each index of `axis`; axis 0 is the output channel."""

    #: The axis that keeps its own scales.
    axis: int = 0

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return "channel"

    def box(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with `axis` cut into single indices.

        >>> PerChannel().box((8, 64))
        (1, 64)
        """
        return tuple(1 if axis == self.axis else size for axis, size in enumerate(shape))


@dataclass(frozen=True, slots=True)
class PerGroup:
    """One scale for each run of `size` consecutive inputs of one output."""

    #: Inputs that share a scale.
    size: int

    def __post_init__(self) -> None:
        if self.size < 1:
            raise SchemeError(f"group size {self.size} is not positive; 128, 64 and 32 are usual")

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return f"g{self.size}"

    def box(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return 1 for every axis but the last.

        >>> PerGroup(64).box((8, 576))
        (1, 64)
        """
        return (*(1 for _ in shape[:-1]), min(self.size, max(shape[-1], 1)))
