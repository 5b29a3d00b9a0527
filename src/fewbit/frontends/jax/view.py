"""How the numbers of an array are those of a parameter: which of its axes, cut and joined, each axis runs along.

An axis of a view is a run of atoms, of which the last runs fastest. The atom (axis, stride, size) of a parameter with
index i along that axis is (i // stride) % size. Transposing permutes runs, reshaping cuts and joins them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import NamedTuple

from fewbit.numerics.namespace import Array


class Atom(NamedTuple):
    """A part of an axis of a parameter."""

    axis: int
    stride: int
    size: int


#: What an axis runs along; nothing where it has one index.
Run = tuple[Atom, ...]


@dataclass(frozen=True, slots=True)
class View:
    """An array made of a parameter by moving its numbers."""

    axes: tuple[Run, ...]
    #: Axes of which one index was taken, in the order of taking: by a scan, or by a slice.
    taken: tuple[Run, ...] = ()

    @classmethod
    def of(cls, shape: Sequence[int]) -> View:
        """Return the parameter of `shape` itself."""
        return cls(tuple((Atom(axis, 1, size),) if size != 1 else () for axis, size in enumerate(shape)))

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the array."""
        return tuple(length(run) for run in self.axes)

    def transposed(self, permutation: Sequence[int]) -> View:
        """Return the view with its axes permuted."""
        return replace(self, axes=tuple(self.axes[axis] for axis in permutation))

    def reshaped(self, shape: Sequence[int]) -> View | None:
        """Return the view as `shape`, or `None` where that cuts an axis into what is no grid."""
        left = [atom for run in self.axes for atom in run]
        axes: list[Run] = []
        for size in shape:
            run = _cut_off(left, size)
            if run is None:
                return None
            axes.append(joined(run))
        return None if left else replace(self, axes=tuple(axes))

    def without(self, axis: int) -> View:
        """Return the view at one index of `axis`."""
        return View((*self.axes[:axis], *self.axes[axis + 1 :]), (*self.taken, self.axes[axis]))

    def narrowed(self, axis: int) -> View:
        """Return the view at one index of `axis`, which stays as an axis of size 1."""
        return View((*self.axes[:axis], (), *self.axes[axis + 1 :]), (*self.taken, self.axes[axis]))


@dataclass(frozen=True, slots=True)
class Layout:
    """How a parameter is a stack of matrices (..., out, in)."""

    #: Of each axis of the stack.
    stack: tuple[Run, ...]
    out: Run
    columns: Run

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the stack of matrices."""
        return (*(length(run) for run in self.stack), length(self.out), length(self.columns))

    @property
    def matrix(self) -> tuple[int, int]:
        """Shape of a matrix, (out, in)."""
        return length(self.out), length(self.columns)


def length(run: Run) -> int:
    """Return how many indices a run has."""
    return prod(atom.size for atom in run)


def joined(run: Sequence[Atom]) -> Run:
    """Return a run with neighbours that continue each other as one."""
    found: list[Atom] = []
    for atom in run:
        last = found[-1] if found else None
        if last and last.axis == atom.axis and last.stride == atom.stride * atom.size:
            found[-1] = Atom(atom.axis, atom.stride, last.size * atom.size)
        else:
            found.append(atom)
    return tuple(found)


def _cut_off(left: list[Atom], size: int) -> list[Atom] | None:
    """Remove atoms of `size` indices from the front of `left` and return them; `None`: they do not divide so."""
    run: list[Atom] = []
    while size != 1:
        if not left or not size:
            return None
        axis, stride, own = left.pop(0)
        if own > size:
            if own % size:
                return None
            inner = own // size
            left.insert(0, Atom(axis, stride, inner))
            stride, own = stride * inner, size
        if size % own:
            return None
        run.append(Atom(axis, stride, own))
        size //= own
    return run


def to_matrices(parameter: Array, layout: Layout) -> Array:
    """Return a parameter as its stack of matrices (..., out, in)."""
    atoms = [atom for run in (*layout.stack, layout.out, layout.columns) for atom in run]
    order = _natural(atoms)
    apart = parameter.reshape([atoms[place].size for place in order])
    return apart.transpose([order.index(place) for place in range(len(atoms))]).reshape(layout.shape)


def from_matrices(matrices: Array, layout: Layout, view: View) -> Array:
    """Return the array that `view` is, from what is left of the stack where `view` has taken indices."""
    stack = layout.stack[len(view.taken) :]
    held = [atom for run in (*stack, layout.out, layout.columns) for atom in run]
    whole = matrices.reshape([atom.size for atom in held]).transpose(_natural(held))
    wanted = [atom for run in view.axes for atom in run]
    order = _natural(wanted)
    apart = whole.reshape([wanted[place].size for place in order])
    return apart.transpose([order.index(place) for place in range(len(wanted))]).reshape(view.shape)


def _natural(atoms: Sequence[Atom]) -> list[int]:
    """Return the places of atoms in the order of the parameter's own axes."""
    return sorted(range(len(atoms)), key=lambda place: (atoms[place].axis, -atoms[place].stride))
