"""Matrix products as values: what a call of torch multiplies, along which axes, and the same product of others.

C = A B, sum_k A[..., m, k] B[..., k, n], spelled `matmul`, `@`, `mm`, `bmm`, `addmm`, `baddbmm` or `einsum`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fewbit.frontends.torch.calls import Call, Slot

#: Position and keyword of both operands by the name of the function.
_OPERANDS: dict[str, tuple[tuple[int, str], tuple[int, str]]] = {
    "matmul": ((0, "input"), (1, "other")),
    "linalg_matmul": ((0, "input"), (1, "other")),
    "mm": ((0, "input"), (1, "mat2")),
    "bmm": ((0, "input"), (1, "mat2")),
    "addmm": ((1, "mat1"), (2, "mat2")),
    "baddbmm": ((1, "batch1"), (2, "batch2")),
    "einsum": ((1, ""), (2, "")),
}


@dataclass(frozen=True, slots=True)
class Operand:
    """One of the two tensors of a product."""

    tensor: Tensor
    #: Axes that are summed over.
    summed: tuple[int, ...]
    #: Axes that the other operand does not have.
    own: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class MatrixProduct:
    """A product that is asked for and has not been computed."""

    left: Operand
    right: Operand
    #: Returns the float32 product of two float32 tensors in place of the operands.
    multiply: Callable[[Tensor, Tensor], Tensor]
    #: What the outcome is to be written into; `None`: a tensor of its own.
    into: Tensor | None = None


def matrix_product(function: Any, call: Call) -> MatrixProduct | None:
    """Return the product of two float tensors that `function` would compute for `call`; `None` for anything else."""
    name = getattr(function, "__name__", "")
    into = call.kwargs.get("out")
    if name in ("addmm_", "baddbmm_"):
        name, into = name[:-1], call.args[0]
        function = getattr(torch, name)
    if name not in _OPERANDS:
        return None
    if name == "einsum" and isinstance(call.args[-1], (list, tuple)):
        call = Call((call.args[0], *call.args[-1]), {})
    given = call.arguments()
    slots = [next((slot for slot in places if slot in given), None) for places in _OPERANDS[name]]
    left, right = (given.get(slot) if slot is not None else None for slot in slots)
    if not (isinstance(left, Tensor) and isinstance(right, Tensor) and _is_float(left) and _is_float(right)):
        return None
    axes = _einsum_axes(call, left, right) if name == "einsum" else _matrix_axes(left, right)
    if axes is None:
        return None

    def multiply(first: Tensor, second: Tensor) -> Tensor:
        values: dict[Slot, Any] = {slot: _to_float32(value) for slot, value in given.items()}
        both = call.replaced({**values, slots[0]: first, slots[1]: second})  # type: ignore[dict-item]
        outcome: Tensor = function(*both.args, **{key: own for key, own in both.kwargs.items() if key != "out"})
        return outcome

    return MatrixProduct(Operand(left, *axes[0]), Operand(right, *axes[1]), multiply, into)


#: Of each operand the axes that are summed over, and its own.
_Axes = tuple[tuple[tuple[int, ...], tuple[int, ...]], tuple[tuple[int, ...], tuple[int, ...]]]


def _matrix_axes(left: Tensor, right: Tensor) -> _Axes:
    """Return the axes of (..., m, k) and (..., k, n); a vector has no axis of its own."""
    return ((-1,), (-2,) if left.ndim > 1 else ()), ((-2,), (-1,)) if right.ndim > 1 else ((-1,), ())


def _einsum_axes(call: Call, left: Tensor, right: Tensor) -> _Axes | None:
    """Return the axes of an equation of two operands that sums over what both have, else `None`."""
    equation = call.args[0]
    terms, _, outcome = equation.replace(" ", "").partition("->")
    both = [term.replace("...", ".") for term in terms.split(",")]
    if len(both) != 2 or any(len(set(term)) != len(term) for term in both):
        return None
    if "->" not in equation:  # what occurs once stays
        outcome = "".join(set(both[0]) ^ set(both[1]))
    summed = set(both[0]) & set(both[1]) - set(outcome) - {"."}
    axes = []
    for term, other, tensor in ((both[0], both[1], left), (both[1], both[0], right)):
        # Behind an ellipsis, which stands for any number of axes, places are counted from the end.
        place = {own: n if n < term.find(".") or "." not in term else n - len(term) for n, own in enumerate(term)}
        place.pop(".", None)
        kept = {own: axis % tensor.ndim for own, axis in place.items()}
        axes.append((
            tuple(axis for own, axis in kept.items() if own in summed),
            tuple(axis for own, axis in kept.items() if own not in other),
        ))  # fmt: skip
    return (axes[0], axes[1]) if summed else None


def _is_float(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.ndim > 0


def _to_float32(value: Any) -> Any:
    return value.to(torch.float32) if _is_float(value) else value
