"""Experts that a module keeps in one parameter (experts, a, b), as a module with linear layers for each.

It stands where the parameter stood. Products with it, x W_e^T over the tokens of each expert e, are made by the layers,
so that these are seen, measured and replaced like any other; what else is done with it gets the numbers as one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.frontends.torch.expert_weight import OPERATORS, ExpertWeight
from fewbit.frontends.torch.stored_experts import Projection

#: Methods of modules that code means as those of a tensor, where a tensor stood.
_CONVERSIONS = ("to", "float", "double", "half", "bfloat16", "type", "cpu", "cuda")


class ExpertStack(nn.Module):
    """What behaves like the parameter in the code around it."""

    #: How many experts there are, and the shape of each as it was stored.
    count: int
    stored: tuple[int, int]
    #: Whether the parameter never comes back.
    for_good = False
    #: What layers of experts are to checkpoint formats.
    module_class = "FusedExpert"

    def matrix(self, number: int) -> Tensor:
        """Return the weight of an expert as it was stored."""
        raise NotImplementedError

    def sample(self) -> Tensor:
        """Return a tensor of the type and the device of the experts."""
        return self.matrix(0)

    def multiplied(self, number: int, rows: Tensor, *, outputs_first: bool) -> Tensor:
        """Return `rows (n, in)` times an expert as (n, out), its stored matrix read as (out, in) or as (in, out)."""
        raise NotImplementedError

    def opened(self) -> None:
        """Take note that the numbers are used otherwise than in products."""

    def layer_names(self, name: str) -> list[str]:  # noqa: ARG002
        """Return the names of the layers of all experts where the stack is called `name`."""
        return []

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
    """Linear layers for each expert, on memory of the parameter until they are replaced.

    One for each, called by its number, hangs at the stack. Where checkpoints keep experts as layers of their own, these
    hang under the names that they have there, `3.gate_proj`, at the module that had the parameter.
    """

    def __init__(
        self, parameter: nn.Parameter, *, outputs_first: bool, kept: Sequence[Projection] = (), owner: Any = None
    ) -> None:
        super().__init__()
        self.outputs_first = outputs_first
        self.count, self.stored = parameter.shape[0], (parameter.shape[1], parameter.shape[2])
        self.kept = tuple(kept)
        self.module_class = "Linear" if kept else "FusedExpert"
        #: The module that had the parameter; not a part of this one.
        self._owner = (owner if kept else self,)
        for number in range(self.count):
            weight = self.slice_of(parameter, number)
            for place, attribute, rows in self._places(number, make=True):
                own = nn.Parameter(weight[rows], requires_grad=parameter.requires_grad)
                layer = nn.Linear(own.shape[1], own.shape[0], bias=False, device="meta")
                layer.weight = own
                place.add_module(attribute, layer)

    def _places(self, number: int, *, make: bool = False) -> Iterator[tuple[nn.Module, str, slice]]:
        """Yield for each layer of an expert where it hangs, under which name, and which rows it has."""
        owner = self._owner[0]
        if not self.kept:
            yield owner, str(number), slice(None)
            return
        if make and str(number) not in owner._modules:
            owner.add_module(str(number), Expert())
        for own in self.kept:
            yield owner.get_submodule(str(number)), own.name, slice(own.start, own.stop)

    def layers(self, number: int) -> list[Any]:
        """Return the layers of an expert, by rows."""
        return [place._modules[attribute] for place, attribute, _ in self._places(number)]

    def layer_names(self, name: str) -> list[str]:
        """Return the names of the layers of all experts where the stack is called `name`."""
        at = name.rpartition(".")[0] if self.kept else name
        within = [f".{own.name}" for own in self.kept] or [""]
        return [f"{at}.{number}{own}".removeprefix(".") for number in range(self.count) for own in within]

    def discard(self) -> None:
        """Take the layers away from the module that had the parameter."""
        for number in range(self.count) if self.kept else ():
            for place, attribute, _ in list(self._places(number)):
                del place._modules[attribute]
            if not list(self._owner[0].get_submodule(str(number)).children()):
                del self._owner[0]._modules[str(number)]

    def slice_of(self, parameter: Tensor, number: int) -> Tensor:
        """Return the place of an expert in the parameter, as (out, in)."""
        matrix = parameter.detach()[number]
        return matrix if self.outputs_first else matrix.T

    def give_back(self, parameter: Tensor) -> None:
        """Write into the parameter what has been written into the layers otherwise than in place."""
        for number in range(self.count):
            whole = self.slice_of(parameter, number)
            for layer, (_, _, rows) in zip(self.layers(number), self._places(number), strict=True):
                if layer.weight.data_ptr() != whole[rows].data_ptr():
                    whole[rows].copy_(layer.weight.detach())

    def matrix(self, number: int) -> Tensor:
        """Return the weight of an expert as it was stored."""
        weight = self.weight_of(number)
        return weight if self.outputs_first else weight.T

    def sample(self) -> Tensor:
        """Return a part of the first expert's weight."""
        weight: Tensor = self.layers(0)[0].weight
        return weight

    def weight_of(self, number: int) -> Tensor:
        """Return the weight of an expert as (out, in), dequantized if need be."""
        weights = [layer.weight for layer in self.layers(number)]
        return torch.cat(weights) if len(weights) > 1 else weights[0]

    def multiplied(self, number: int, rows: Tensor, *, outputs_first: bool) -> Tensor:
        """Return the product, by the layers of the expert."""
        if outputs_first != self.outputs_first:
            matrix = self.matrix(number)
            return rows @ (matrix.T if outputs_first else matrix)
        outputs = [layer(rows) for layer in self.layers(number)]
        return torch.cat(outputs, -1) if len(outputs) > 1 else outputs[0]


class Expert(nn.Module):
    """What the layers of one expert hang at."""
