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
    """One scale for each index of `axis`, or for each run of `count` indices; axis 0 is the output channel."""

    #: The axis that keeps its own scales.
    axis: int = 0
    #: Neighbouring channels that share a scale.
    count: int = 1

    def __post_init__(self) -> None:
        if self.axis < 0 or self.count < 1:
            raise SchemeError(f"channel {self.axis}x{self.count} is of an axis below 0 or empty; 0x1 is usual")

    @property
    def name(self) -> str:
        """The word for it in notation: `channel`, `channel:1` for axis 1, `channel:0x4` for four that share."""
        if self.count > 1:
            return f"channel:{self.axis}x{self.count}"
        return f"channel:{self.axis}" if self.axis else "channel"

    def box(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the shape with `axis` cut into single indices.

        >>> PerChannel().box((8, 64))
        (1, 64)
        """
        if self.axis >= len(shape):
            raise SchemeError(f"{self.name} needs axis {self.axis}; an array of shape {shape} does not have it")
        return tuple(min(self.count, size) if axis == self.axis else size for axis, size in enumerate(shape))


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


@dataclass(frozen=True, slots=True)
class PerTile:
    """One scale for each rectangle of the last two axes."""

    #: Rows of a tile.
    rows: int
    #: Columns of a tile.
    columns: int

    def __post_init__(self) -> None:
        if self.rows < 1 or self.columns < 1:
            raise SchemeError(f"tile {self.rows}x{self.columns} is empty; 128x128 is usual")

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return f"tile{self.rows}x{self.columns}"

    def box(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return the tile, cut to the shape.

        >>> PerTile(128, 128).box((512, 64))
        (128, 64)
        """
        if len(shape) < 2:
            raise SchemeError(f"{self.name} needs two axes; the array has shape {shape}")
        return (*(1 for _ in shape[:-2]), min(self.rows, shape[-2]), min(self.columns, shape[-1]))


@dataclass(frozen=True, slots=True)
class PerToken:
    """One scale for each row along the last axis: each token of an input (..., features)."""

    @property
    def name(self) -> str:
        """The word for it in notation."""
        return "token"

    def box(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Return 1 for every axis but the last.

        >>> PerToken().box((2, 5, 64))
        (1, 1, 64)
        """
        return (*(1 for _ in shape[:-1]), shape[-1])
