"""How an operator stores its weight, beside fewbit's (out, in): rows, columns, or the kernel of a convolution.

`matrix` undoes `stored`. Of a transposed convolution (in, out / groups, *kernel) becomes (out, in / groups * kernel).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, Protocol

import numpy as np

Numbers = np.ndarray[Any, Any]


class Arrangement(Protocol):
    """A way to store a matrix (out, in)."""

    @property
    def out_axis(self) -> int | None:
        """The axis of the stored array that counts outputs; `None`: no axis does."""

    @property
    def in_axis(self) -> int | None:
        """The axis of the stored array along which groups of inputs lie; `None`: no axis does."""

    def matrix(self, stored: Numbers) -> Numbers:
        """Return the weight as (out, in), a view where that is possible."""

    def stored(self, matrix: Numbers) -> Numbers:
        """Return the weight as the operator wants it."""


@dataclass(frozen=True, slots=True)
class Rows:
    """(out, in): Gemm with transB, and the table of a Gather as (rows, width)."""

    out_axis: int | None = 0
    in_axis: int | None = 1

    def matrix(self, stored: Numbers) -> Numbers:
        """Return `stored`."""
        return stored

    def stored(self, matrix: Numbers) -> Numbers:
        """Return `matrix`."""
        return matrix


@dataclass(frozen=True, slots=True)
class Columns:
    """(in, out): MatMul, and Gemm without transB."""

    out_axis: int | None = 1
    in_axis: int | None = 0

    def matrix(self, stored: Numbers) -> Numbers:
        """Return the transpose."""
        return stored.T

    def stored(self, matrix: Numbers) -> Numbers:
        """Return the transpose."""
        return matrix.T


@dataclass(frozen=True, slots=True, kw_only=True)
class Kernel:
    """(out, in / groups, *kernel) of Conv, or (in, out / groups, *kernel) of ConvTranspose."""

    shape: tuple[int, ...]
    groups: int = 1
    transposed: bool = False

    @property
    def out_axis(self) -> int | None:
        """0; of a transposed one 1, unless groups share the places along it."""
        return 0 if not self.transposed else 1 if self.groups == 1 else None

    @property
    def in_axis(self) -> int | None:
        """`None`: inputs and positions lie along several axes."""
        return None

    def matrix(self, stored: Numbers) -> Numbers:
        """Return (out, in / groups * positions)."""
        if not self.transposed:
            return stored.reshape(self.shape[0], -1)
        inputs, outputs, *kernel = self.shape
        apart = stored.reshape(self.groups, inputs // self.groups, outputs, *kernel)
        return apart.swapaxes(1, 2).reshape(self.groups * outputs, -1)

    def stored(self, matrix: Numbers) -> Numbers:
        """Undo `matrix`."""
        if not self.transposed:
            return matrix.reshape(self.shape)
        inputs, outputs, *kernel = self.shape
        apart = matrix.reshape(self.groups, outputs, inputs // self.groups, *kernel)
        return apart.swapaxes(1, 2).reshape(self.shape)

    @property
    def positions(self) -> int:
        """Numbers of the kernel for one pair of channels."""
        return prod(self.shape[2:])
