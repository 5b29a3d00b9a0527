"""A parameter on its way to what multiplies by it: still packed, with what has been done to it on the way.

A pytree, so that it goes through scan, checkpoint and cond as it is. # matrices: (..., out, in)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from fewbit.errors import SchemeError
from fewbit.frontends.jax.movement import SCALINGS, moved, sliced_axis, slices_stack
from fewbit.frontends.jax.packed_weight import Description
from fewbit.frontends.jax.view import View, from_matrices
from fewbit.numerics.namespace import Array


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, slots=True)
class FloatWeight:
    """A parameter that stays float, as a stack of matrices, while its inputs are watched."""

    values: Array
    #: Which matrix of the stack each is.
    places: Array
    about: Description

    @property
    def stack(self) -> tuple[int, ...]:
        """The axes that are left of the stack."""
        return tuple(self.values.shape[:-2])

    def matrices(self) -> Array:
        """Return the matrices."""
        return self.values

    def tree_flatten(self) -> tuple[Any, Any]:
        """Return arrays, and the rest."""
        return (self.values, self.places), self.about

    @classmethod
    def tree_unflatten(cls, rest: Any, arrays: Any) -> FloatWeight:
        """Undo `tree_flatten`."""
        values, places = arrays
        return cls(values, places, rest)


class Matrices(Protocol):
    """A parameter as matrices, or what is left of its stack; a pytree whose arrays have the axes of the stack first."""

    @property
    def about(self) -> Description:
        """What parameter it is."""

    @property
    def stack(self) -> tuple[int, ...]:
        """The axes that are left of the stack."""

    def matrices(self) -> Array:
        """Return the float matrices (..., out, in)."""


@jax.tree_util.register_pytree_node_class
@dataclass(frozen=True, slots=True)
class Weight:
    """What is left of a parameter's stack, how it is looked at, and the numbers that it was multiplied with."""

    held: Matrices
    view: View
    #: Types that it has been cast to one after the other, its own first.
    casts: tuple[Any, ...]
    #: One number; `None`: 1.
    factor: Array | None = None

    @classmethod
    def of(cls, held: Matrices) -> Weight:
        """Return a parameter as the function gets it."""
        return cls(held, View.of(held.about.shape), (jnp.dtype(held.about.dtype),))

    @property
    def about(self) -> Description:
        """What parameter it is."""
        return self.held.about

    @property
    def dtype(self) -> Any:
        """Type of the array that it stands for."""
        return self.casts[-1]

    def values(self) -> Array:
        """Return the array that it stands for."""
        self._require_stack()
        return self.cast(from_matrices(self.held.matrices(), self.about.layout, self.view))

    def cast(self, values: Array) -> Array:
        """Return numbers that were dequantized as the array has them: cast, and scaled."""
        for dtype in self.casts:
            values = values.astype(dtype)
        return values if self.factor is None else values * self.factor.astype(self.dtype)

    def sliced(self) -> Weight:
        """Return what scan has cut off: its arrays have lost their first axis already."""
        return replace(self, view=self.view.without(0))

    def scaled_by(self, factor: Array | None) -> Weight:
        """Return it with another factor, which has no axis to cut."""
        return replace(self, factor=factor)

    def after(self, equation: Any, position: int, operands: list[Any]) -> Weight | None:
        """Return what an equation that only moves or scales it makes of it; `None`: it does more."""
        if slices_stack(equation):
            return self._picked(equation, position, operands)
        view = moved(equation, position, self.view)
        if view is None:
            return None
        dtype = equation.outvars[0].aval.dtype
        casts = self.casts if dtype == self.dtype else (*self.casts, dtype)
        if equation.primitive.name not in SCALINGS:
            return replace(self, view=view, casts=casts)
        other = None if equation.primitive.name == "neg" else jnp.reshape(operands[1 - position], ())
        return replace(self, view=view, casts=casts, factor=self._scaled(equation.primitive.name, other))

    def _scaled(self, name: str, other: Array | None) -> Array:
        factor = jnp.ones((), self.dtype) if self.factor is None else self.factor
        return -factor if other is None else factor / other if name == "div" else factor * other

    def _picked(self, equation: Any, position: int, operands: list[Any]) -> Weight | None:
        axis = sliced_axis(equation) if position == 0 else None
        stack = self.about.layout.stack[len(self.view.taken) :]
        if axis is None or not stack or self.view.axes[axis] != stack[0]:
            return None
        fixed = equation.primitive.name == "slice"
        index = equation.params["start_indices"][axis] if fixed else operands[1 + axis]
        held = jax.tree.map(lambda own: jax.lax.dynamic_index_in_dim(own, index, 0, keepdims=False), self.held)
        return replace(self, held=held, view=self.view.narrowed(axis))

    def _require_stack(self) -> None:
        if self.view.taken != self.about.layout.stack[: len(self.view.taken)]:
            raise SchemeError(
                f"{self.about.name} is indexed here along other axes than where it was quantized; quantize it with the "
                "inputs that it gets here, or keep it"
            )

    def tree_flatten(self) -> tuple[Any, Any]:
        """Return arrays, and the rest."""
        return (self.held, self.factor), (self.view, self.casts)

    @classmethod
    def tree_unflatten(cls, rest: Any, arrays: Any) -> Weight:
        """Undo `tree_flatten`."""
        (held, factor), (view, casts) = arrays, rest
        return cls(held, view, casts, factor)


def concrete(value: Any) -> Any:
    """Return a value as an array, also where it is a weight."""
    return value.values() if isinstance(value, Weight) else value
