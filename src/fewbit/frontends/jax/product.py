"""The operations that multiply by a weight, and the weight as matrices (..., out, in) in each of them.

dot_general: contracted axes are columns, batch axes a stack. conv_general_dilated: (O, I x positions). ragged_dot: a
stack of experts. gather of rows: an embedding (rows, width).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fewbit.frontends.jax.view import Layout, Run, View, joined
from fewbit.interfaces import LayerKind


@dataclass(frozen=True, slots=True)
class Product:
    """A product with a weight."""

    kind: LayerKind
    #: Which operand the weight is.
    position: int
    #: The weight as matrices here.
    layout: Layout
    #: Axes of the weight that are summed over, those that are the stack's here, and the others.
    contracted: tuple[int, ...]
    stacked: tuple[int, ...] = ()
    #: Groups of a convolution.
    groups: int = 1


def product_of(equation: Any, position: int, view: View) -> Product | None:
    """Return what an equation multiplies with its operand at `position` as the weight; `None`: it does not."""
    read = PRODUCTS.get(equation.primitive.name)
    return read(equation, position, view) if read else None


def _laid_out(view: View, stacked: tuple[int, ...], out: tuple[int, ...], columns: tuple[int, ...]) -> Layout:
    def run(axes: tuple[int, ...]) -> Run:
        return joined([atom for axis in axes for atom in view.axes[axis]])

    stack = (*view.taken, *(joined(view.axes[axis]) for axis in stacked))
    return Layout(stack, run(out), run(columns))


def _rest(view: View, *used: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(axis for axis in range(len(view.axes)) if not any(axis in axes for axes in used))


def _dot(equation: Any, position: int, view: View) -> Product | None:
    parameters = equation.params
    contracted, batch = parameters["dimension_numbers"]
    columns, stacked = tuple(sorted(contracted[position])), tuple(batch[position])
    out = _rest(view, columns, stacked)
    layout = _laid_out(view, stacked, out, columns)
    return Product("linear", position, layout, columns, stacked) if columns else None


def _convolution(equation: Any, position: int, view: View) -> Product | None:
    parameters = equation.params
    if position != 1 or parameters["batch_group_count"] != 1:
        return None
    out, *columns = parameters["dimension_numbers"].rhs_spec
    layout = _laid_out(view, (), (out,), tuple(columns))
    return Product("conv", 1, layout, tuple(columns), groups=parameters["feature_group_count"])


def _ragged(equation: Any, position: int, view: View) -> Product | None:
    parameters = equation.params
    numbers = parameters["ragged_dot_dimension_numbers"]
    contracted, batch = numbers.dot_dimension_numbers
    experts, ragged = tuple(numbers.rhs_group_dimensions), tuple(numbers.lhs_ragged_dimensions)
    free = len(experts) == 1 and not batch[0] and len(ragged) == 1 and ragged[0] not in contracted[0]
    if position != 1 or not free:
        return None
    columns = tuple(sorted(contracted[1]))
    return Product("linear", 1, _laid_out(view, experts, _rest(view, columns, experts), columns), columns, experts)


def _gather(equation: Any, position: int, view: View) -> Product | None:
    numbers, sizes = equation.params["dimension_numbers"], tuple(equation.params["slice_sizes"])
    rows = tuple(axis for axis in numbers.start_index_map if sizes[axis] == 1)
    batched = getattr(numbers, "operand_batching_dims", ())
    # One row alone, as of a stack of biases, is no embedding.
    several = equation.outvars[0].aval.ndim > len(numbers.offset_dims)
    if position != 0 or len(view.axes) != 2 or len(rows) != 1 or batched or not several:
        return None
    width = _rest(view, rows)
    if sizes[width[0]] != view.shape[width[0]] or not set(numbers.collapsed_slice_dims) <= set(rows):
        return None
    return Product("embedding", 0, _laid_out(view, (), rows, width), width)


#: Operations that multiply by a weight, by the name of their primitive.
PRODUCTS: dict[str, Callable[[Any, int, View], Product | None]] = {
    "dot_general": _dot,
    "conv_general_dilated": _convolution,
    "ragged_dot_general": _ragged,
    "ragged_dot": _ragged,
    "gather": _gather,
}
