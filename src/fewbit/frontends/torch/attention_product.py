"""The two products of attention, S = Q K^T and O = P V with P = softmax(S), as what a module's call makes of them.

The first is any product of two activations; what comes of it are scores, and a product that takes those, whatever was
done to them between, is the second. Linear attention has the same shape; there the names are those of places only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from fewbit.frontends.torch.matrix_product import MatrixProduct, Operand

#: Which of both products; the name of what rounds it inside of the module that makes it.
Role = Literal["query_key", "probabilities_value"]
#: Names of the operands of each.
OPERANDS: dict[Role, tuple[str, str]] = {
    "query_key": ("query", "key"),
    "probabilities_value": ("probabilities", "value"),
}


@dataclass(frozen=True, slots=True)
class Factor:
    """An operand by name."""

    #: One of `OPERANDS`.
    name: str
    tensor: Tensor
    #: Axes that a token lies along. Of a value those of its own numbers, so that a token is rounded for itself, as in a
    #: cache; of all others the axes that are summed over.
    token: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AttentionProduct:
    """A product that is asked for and has not been computed."""

    role: Role
    #: In the order of `multiply`.
    factors: tuple[Factor, Factor]
    #: Returns the float32 product of two float32 tensors in place of the operands.
    multiply: Callable[[Tensor, Tensor], Tensor]

    def plain(self) -> Tensor:
        """Return the float32 product of the operands as they are."""
        first, second = (factor.tensor.float() for factor in self.factors)
        return self.multiply(first, second)


def query_key(product: MatrixProduct) -> AttentionProduct:
    """Return `product` as the one that gives scores."""
    names = OPERANDS["query_key"]
    both = zip(names, (product.left, product.right), strict=True)
    first, second = (Factor(name, operand.tensor, operand.summed) for name, operand in both)
    return AttentionProduct("query_key", (first, second), product.multiply)


def probabilities_value(product: MatrixProduct, *, probabilities_left: bool = True) -> AttentionProduct:
    """Return `product` as the one that takes what became of scores."""

    def factor(operand: Operand, *, probabilities: bool) -> Factor:
        if probabilities:
            return Factor("probabilities", operand.tensor, operand.summed)
        return Factor("value", operand.tensor, operand.own or operand.summed)

    factors = (
        factor(product.left, probabilities=probabilities_left),
        factor(product.right, probabilities=not probabilities_left),
    )
    return AttentionProduct("probabilities_value", factors, product.multiply)
