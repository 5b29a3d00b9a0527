"""What an operation that only moves or scales numbers makes of a view of a parameter.

Reshape, transpose, squeeze, new axes of size 1, casts between floats, copies, one index of an axis, and products with a
single number.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp

from fewbit.frontends.jax.view import View

#: Operations that cut; of a stack they take a matrix.
_SLICES = ("slice", "dynamic_slice")
#: Operations that give what they get.
_UNCHANGED = ("copy", "copy_p", "stop_gradient", "name", "sharding_constraint", "pvary")
#: Operations with a single number on the other side, or with none.
SCALINGS = ("mul", "div", "neg")


def moved(equation: Any, position: int, view: View) -> View | None:
    """Return the view that an equation makes of its operand at `position`, or `None` where it does more than that."""
    name = equation.primitive.name
    if name in SCALINGS:
        return view if _scales(equation, position) else None
    move = _MOVES.get(name)
    return move(equation.params, view) if move and position == 0 else None


def slices_stack(equation: Any) -> bool:
    """Return whether an equation takes a part of an array, of which one index of an axis is a matrix of a stack."""
    whole = equation.invars[0].aval.shape == equation.outvars[0].aval.shape
    return equation.primitive.name in _SLICES and not whole


def sliced_axis(equation: Any) -> int | None:
    """Return the axis of which a slice takes one index and leaves the others whole, or `None`."""
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    cut = [axis for axis, (own, left) in enumerate(zip(before, after, strict=True)) if own != left]
    if len(cut) != 1 or after[cut[0]] != 1:
        return None
    return cut[0]


def _scales(equation: Any, position: int) -> bool:
    """Whether an equation multiplies a weight by one number."""
    own = equation.invars[position].aval
    if equation.primitive.name == "neg":
        return True
    other = equation.invars[1 - position].aval
    if equation.primitive.name == "div" and position == 1:
        return False
    return bool(other.size == 1) and equation.outvars[0].aval.shape == own.shape and own.size != 1


def _converted(parameters: Any, view: View) -> View | None:
    return view if jnp.issubdtype(parameters["new_dtype"], jnp.floating) else None


def _reshaped(parameters: Any, view: View) -> View | None:
    return None if parameters.get("dimensions") is not None else view.reshaped(parameters["new_sizes"])


def _squeezed(parameters: Any, view: View) -> View:
    gone = {int(axis) % len(view.axes) for axis in parameters["dimensions"]}
    return View(tuple(run for axis, run in enumerate(view.axes) if axis not in gone), view.taken)


def _broadcast(parameters: Any, view: View) -> View | None:
    """Return the view with new axes of size 1; `None`: numbers are repeated."""
    axes: list[Any] = [() for _ in parameters["shape"]]
    for own, axis in enumerate(parameters["broadcast_dimensions"]):
        axes[axis] = view.axes[own]
    found = View(tuple(axes), view.taken)
    return found if found.shape == tuple(parameters["shape"]) else None


_MOVES: dict[str, Callable[[Any, View], View | None]] = {
    "transpose": lambda parameters, view: view.transposed(parameters["permutation"]),
    "reshape": _reshaped,
    "squeeze": _squeezed,
    "broadcast_in_dim": _broadcast,
    "convert_element_type": _converted,
    **dict.fromkeys((*_UNCHANGED, *_SLICES), lambda _, view: view),
}
