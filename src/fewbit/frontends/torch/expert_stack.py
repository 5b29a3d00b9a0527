"""Experts that a module keeps in one parameter (experts, a, b), as a module with a linear layer for each.

It stands where the parameter stood. Products with it, x W_e^T over the tokens of each expert e, are made by the layers,
so that these are seen, measured and replaced like any other; what else is done with it gets the numbers as one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from fewbit.frontends.torch.expert_weight import OPERATORS, ExpertWeight

#: Methods of modules that code means as those of a tensor, where a tensor stood.
_CONVERSIONS = ("to", "float", "double", "half", "bfloat16", "type", "cpu", "cuda")


class ExpertStack(nn.Module):
    """What behaves like the parameter in the code around it."""

    #: How many experts there are, and the shape of each as it was stored.
    count: int
    stored: tuple[int, int]

    def matrix(self, number: int) -> Tensor:
        """Return the weight of an expert as it was stored."""
        raise NotImplementedError

    def multiplied(self, number: int, rows: Tensor, *, outputs_first: bool) -> Tensor:
        """Return `rows (n, in)` times an expert as (n, out), its stored matrix read as (out, in) or as (in, out)."""
        raise NotImplementedError

    def opened(self) -> None:
        """Take note that the numbers are used otherwise than in products."""

    def view(self) -> ExpertWeight:
        """Return all experts as a weight."""
        return ExpertWeight(self)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what `func` returns for the weight that this stands for."""
        args = tuple(own.view() if isinstance(own, ExpertStack) else own for own in args)
        kwargs = {name: own.view() if isinstance(own, ExpertStack) else own for name, own in (kwargs or {}).items()}
        return func(*args, **kwargs)

    def __getitem__(self, key: Any) -> Any:
        return self.view()[key]

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(self.count))

    def __matmul__(self, other: Any) -> Any:
        return self.view() @ other

    def __rmatmul__(self, other: Any) -> Any:
        return other @ self.view()

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("_") and name not in ("count", "stored") and hasattr(Tensor, name):
            return getattr(self.view(), name)
        return super().__getattr__(name)


def _as_tensor(name: str) -> Any:
    def method(self: ExpertStack, *args: Any, **kwargs: Any) -> Any:
        return getattr(self.view(), name)(*args, **kwargs)

    return method


for _name in (*_CONVERSIONS, *OPERATORS):
    setattr(ExpertStack, _name, _as_tensor(_name))


def stacks(model: nn.Module) -> dict[str, ExpertStack]:
    """Return the stacks in `model` by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, ExpertStack)}


class ProbedExperts(ExpertStack):
    """The parameter itself, to see how a run uses it."""

    def __init__(self, parameter: nn.Parameter) -> None:
        super().__init__()
        self.fused = parameter
        self.count, self.stored = parameter.shape[0], (parameter.shape[1], parameter.shape[2])
        #: How products have read its matrices: as (out, in), as (in, out).
        self.read: set[bool] = set()
        #: Whether something else was done with it.
        self.open = False

    def matrix(self, number: int) -> Tensor:
        """Return the weight of an expert as it is stored."""
        return self.fused[number]

    def multiplied(self, number: int, rows: Tensor, *, outputs_first: bool) -> Tensor:
        """Return the product, and note how the matrix was read."""
        self.read.add(outputs_first)
        matrix = self.fused[number]
        return rows @ (matrix.T if outputs_first else matrix)

    def opened(self) -> None:
        """Take note."""
        self.open = True


class FusedExperts(ExpertStack):
    """A linear layer for each expert, on memory of the parameter until it is replaced."""

    def __init__(self, parameter: nn.Parameter, *, outputs_first: bool) -> None:
        super().__init__()
        self.outputs_first = outputs_first
        self.count, self.stored = parameter.shape[0], (parameter.shape[1], parameter.shape[2])
        for number in range(self.count):
            weight = self.slice_of(parameter, number)
            layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
            layer.weight = nn.Parameter(weight, requires_grad=parameter.requires_grad)
            self.add_module(str(number), layer)

    def slice_of(self, parameter: Tensor, number: int) -> Tensor:
        """Return the place of an expert in the parameter, as (out, in)."""
        matrix = parameter.detach()[number]
        return matrix if self.outputs_first else matrix.T

    def matrix(self, number: int) -> Tensor:
        """Return the weight of an expert as it was stored."""
        weight = self.weight_of(number)
        return weight if self.outputs_first else weight.T

    def weight_of(self, number: int) -> Tensor:
        """Return the weight of an expert as (out, in), dequantized if need be."""
        layer: Any = self._modules[str(number)]
        weight: Tensor = layer.weight
        return weight

    def multiplied(self, number: int, rows: Tensor, *, outputs_first: bool) -> Tensor:
        """Return the product, by the layer of the expert."""
        if outputs_first != self.outputs_first:
            matrix = self.matrix(number)
            return rows @ (matrix.T if outputs_first else matrix)
        layer: Any = self._modules[str(number)]
        output: Tensor = layer(rows)
        return output
