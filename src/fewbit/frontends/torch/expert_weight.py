"""The weights of some experts as code uses them: one of them, a choice of them for each token, or all.

Known are linear and matmul with one expert, bmm with a choice or with all, and grouped products, whose rows come sorted
by expert with the ends of the groups. In any other function it is a plain tensor.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

#: What Python calls on the type for an operator, whatever `__getattr__` has to say.
OPERATORS = (
    *(f"__{side}{name}__" for name in ("add", "sub", "mul", "truediv", "floordiv", "mod", "pow") for side in ("", "r")),
    *("__neg__", "__abs__", "__lt__", "__le__", "__gt__", "__ge__"),
)


@dataclass(frozen=True, eq=False)
class ExpertWeight:
    """One expert's matrix, or a stack of them; `flipped` has its last two axes exchanged."""

    #: The `ExpertStack` that it is of.
    owner: Any
    #: One expert; a tensor with one for each entry of the stack; `None`: all in order.
    chosen: int | Tensor | None = None
    flipped: bool = False

    @property
    def shape(self) -> torch.Size:
        """As of a tensor."""
        first, second = self.owner.stored[:: -1 if self.flipped else 1]
        if isinstance(self.chosen, int):
            return torch.Size((first, second))
        return torch.Size((self.owner.count if self.chosen is None else len(self.chosen), first, second))

    @property
    def ndim(self) -> int:
        """As of a tensor."""
        return len(self.shape)

    @property
    def dtype(self) -> torch.dtype:
        """As of a tensor."""
        dtype: torch.dtype = self._part().dtype
        return dtype

    @property
    def device(self) -> torch.device:
        """As of a tensor."""
        device: torch.device = self._part().device
        return device

    @property
    def mT(self) -> ExpertWeight:  # noqa: N802  # as torch calls it
        """As of a tensor."""
        return ExpertWeight(self.owner, self.chosen, not self.flipped)

    @property
    def T(self) -> Any:  # noqa: N802
        """As of a tensor."""
        return self.mT if self.ndim == 2 else self.tensor().T

    def t(self) -> Any:
        """As of a tensor."""
        return self.T

    def transpose(self, first: int, second: int) -> Any:
        """As of a tensor."""
        last = {self.ndim - 1, self.ndim - 2}
        same = {first % self.ndim, second % self.ndim} == last
        return self.mT if same else self.tensor().transpose(first, second)

    def contiguous(self) -> ExpertWeight:
        """As of a tensor, whose layout in memory does not matter here."""
        return self

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """As of a tensor."""
        wanted = [*args, *kwargs.values()]
        if len(wanted) == 1 and wanted[0] in (self.dtype, self.device):
            return self
        return self.tensor().to(*args, **kwargs)

    def size(self, axis: int | None = None) -> Any:
        """As of a tensor."""
        return self.shape if axis is None else self.shape[axis]

    def dim(self) -> int:
        """As of a tensor."""
        return self.ndim

    def tensor(self) -> Tensor:
        """Return the numbers, for what is no product that is known here."""
        self.owner.opened()
        if isinstance(self.chosen, int):
            found: Tensor = self.owner.matrix(self.chosen)
        else:
            found = torch.stack([self.owner.matrix(number) for number in range(self.owner.count)])
            found = found if self.chosen is None else found[self.chosen]
        return found.transpose(-2, -1) if self.flipped else found

    def __getitem__(self, key: Any) -> Any:
        if self.chosen is None and not isinstance(key, bool):
            number = isinstance(key, int) or (isinstance(key, Tensor) and not key.ndim and not key.is_floating_point())
            if number and (not isinstance(key, Tensor) or key.dtype != torch.bool):
                if not -self.owner.count <= int(key) < self.owner.count:
                    raise IndexError(f"expert {int(key)} of {self.owner.count}")
                return ExpertWeight(self.owner, int(key) % self.owner.count, self.flipped)
            if isinstance(key, Tensor) and key.ndim == 1 and key.dtype in (torch.int32, torch.int64):
                return ExpertWeight(self.owner, key, self.flipped)
        return self.tensor()[key]

    def __len__(self) -> int:
        return self.shape[0]

    def __matmul__(self, other: Any) -> Any:
        return torch.matmul(self, other)  # type: ignore[arg-type]

    def __rmatmul__(self, other: Any) -> Any:
        return torch.matmul(other, self)  # type: ignore[arg-type]

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or not hasattr(Tensor, name):
            raise AttributeError(name)
        return getattr(self.tensor(), name)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what `func` returns, its products made expert by expert."""
        kwargs = kwargs or {}
        product = _product(func, args, kwargs)
        if product is not None:
            return product()
        return func(*(_plain(own) for own in args), **{name: _plain(own) for name, own in kwargs.items()})

    def rows_multiplied(self, number: int, rows: Tensor, *, outputs_first: bool) -> Tensor:
        """Return `rows (n, in)` times one expert; `outputs_first`: this, as it is, has the axes (out, in)."""
        outcome: Tensor = self.owner.multiplied(number, rows, outputs_first=outputs_first != self.flipped)
        return outcome

    def _part(self) -> Tensor:
        """Return what has the type and the device of every expert."""
        found: Tensor = self.owner.sample()
        return found


def _operator(name: str) -> Any:
    def method(self: ExpertWeight, *others: Any) -> Any:
        return getattr(self.tensor(), name)(*(_plain(own) for own in others))

    return method


for _name in OPERATORS:
    setattr(ExpertWeight, _name, _operator(_name))


def _plain(value: Any) -> Any:
    if isinstance(value, (tuple, list)):
        return type(value)(_plain(own) for own in value)
    return value.tensor() if isinstance(value, ExpertWeight) else value


def _product(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Tensor] | None:
    """Return what makes the product that `func` of these arguments is, or `None`."""
    # An operator that others have registered has its name in another place.
    name = str(getattr(func, "_qualified_op_name", getattr(func, "__name__", ""))).rpartition("::")[2]
    named = next((made for names, made in _PRODUCTS.items() if name in names), None)
    return named(args, kwargs) if named else None


def _linear(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Tensor] | None:
    given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
    rows, weight, bias = given["input"], given["weight"], given.get("bias")
    if not (isinstance(weight, ExpertWeight) and isinstance(weight.chosen, int) and isinstance(rows, Tensor)):
        return None
    return lambda: _with(_by_one(rows, weight, outputs_first=True), bias)


def _grouped(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Tensor] | None:
    rows, weight, ends = (*args, kwargs.get("offs"))[:3] if len(args) > 1 else (None, None, None)
    whole = isinstance(weight, ExpertWeight) and weight.chosen is None
    if not (whole and isinstance(rows, Tensor) and rows.ndim == 2 and isinstance(ends, Tensor)):
        return None
    return lambda: _by_groups(rows, weight, ends)


def _matmul(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[[], Tensor] | None:
    left, right = args if len(args) == 2 and not kwargs else (None, None)
    if isinstance(left, Tensor) and isinstance(right, ExpertWeight):
        return _multiplied(left, right, outputs_first=False)
    if isinstance(left, ExpertWeight) and isinstance(right, Tensor) and right.ndim > 1:
        made = _multiplied(right.mT, left, outputs_first=True)
        return made and (lambda: made().mT)
    return None


#: What makes a product, by the names of the function that is called for it.
_PRODUCTS = {
    frozenset({"linear"}): _linear,
    frozenset({"matmul", "__matmul__", "mm", "bmm"}): _matmul,
    frozenset({"grouped_mm", "_grouped_mm", "grouped_mm_fallback"}): _grouped,
}


def _multiplied(rows: Tensor, weight: ExpertWeight, *, outputs_first: bool) -> Callable[[], Tensor] | None:
    """Return what multiplies `rows (..., n, in)` by one expert, or a stack of rows by a stack of experts."""
    if isinstance(weight.chosen, int):
        return lambda: _by_one(rows, weight, outputs_first=outputs_first)
    if rows.ndim != 3 or len(rows) != len(weight):
        return None
    return lambda: _by_choice(rows, weight, outputs_first=outputs_first)


def _with(output: Tensor, bias: Any) -> Tensor:
    return output if bias is None else output + bias


def _by_one(rows: Tensor, weight: ExpertWeight, *, outputs_first: bool) -> Tensor:
    assert isinstance(weight.chosen, int)
    output = weight.rows_multiplied(weight.chosen, rows.reshape(-1, rows.shape[-1]), outputs_first=outputs_first)
    return output.reshape(*rows.shape[:-1], output.shape[-1])


def _by_choice(rows: Tensor, weight: ExpertWeight, *, outputs_first: bool) -> Tensor:
    """Return `rows (s, n, in)` times the expert that is chosen for each of s."""
    chosen = torch.arange(len(rows), device=rows.device) if weight.chosen is None else weight.chosen
    assert isinstance(chosen, Tensor)
    output = rows.new_empty(*rows.shape[:2], weight.shape[1 if outputs_first else 2])
    for number in torch.unique(chosen).tolist():
        own = chosen == number
        given = rows[own]
        outcome = weight.rows_multiplied(number, given.reshape(-1, rows.shape[-1]), outputs_first=outputs_first)
        output[own] = outcome.reshape(len(given), rows.shape[1], -1)
    return output


def _by_groups(rows: Tensor, weight: ExpertWeight, ends: Tensor) -> Tensor:
    """Return `rows (s, in)` times one expert after the other, each up to its end; zeros behind the last."""
    output, start = rows.new_zeros(len(rows), weight.shape[2]), 0
    for number, end in enumerate(ends.tolist()):
        if end > start:
            output[start:end] = weight.rows_multiplied(number, rows[start:end], outputs_first=False)
        start = end
    return output
