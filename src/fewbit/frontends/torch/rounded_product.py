"""The products of an attention with rounded operands: float32 products of what the codes stand for.

Softmax, masks and whatever else lies between stay float. In a state_dict a static range is `scale` and `zero_point`
behind the names of product and operand: `attention.query_key.key.scale`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

import torch
from torch import Tensor, nn

from fewbit.activation import Activation
from fewbit.frontends.torch.attention_product import OPERANDS, AttentionProduct, Factor
from fewbit.frontends.torch.mode_forward import ModeForward
from fewbit.frontends.torch.product_mode import Takes
from fewbit.frontends.torch.rounding import Rounding


class RoundedProduct(nn.Module):
    """What rounds both operands of a product; a child of the module that makes it, by the name of its role."""

    def __init__(self, roundings: Mapping[str, nn.Module]) -> None:
        super().__init__()
        for name, rounding in roundings.items():
            self.add_module(name, rounding)

    @classmethod
    def of(cls, activations: Mapping[str, Activation]) -> Self:
        """Return the product that rounds its operands by `activations`."""
        return cls({name: Rounding(own) for name, own in activations.items()})

    def forward(self, product: AttentionProduct) -> Tensor:
        """Return the float32 product of the rounded operands."""
        first, second = (self._rounded(factor) for factor in product.factors)
        return product.multiply(first, second)

    def _rounded(self, factor: Factor) -> Tensor:
        """Return the operand rounded as float32, each of its tokens as one row."""
        last = tuple(range(-len(factor.token), 0))
        rows = factor.tensor.to(torch.float32).movedim(factor.token, last)
        rounded: Tensor = self.get_submodule(factor.name)(rows.flatten(-len(last)))
        return rounded.reshape(rows.shape).movedim(last, factor.token)


class RoundedForward(ModeForward):
    """The forward of a module whose children say which of its products are rounded."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__(module)
        #: Names of the layers and products for whose sake it is there.
        self.users: set[str] = set()

    @property
    def takes(self) -> Takes:
        """Those children."""
        children = self.module._modules
        return {role: own for role in OPERANDS if isinstance(own := children.get(role), RoundedProduct)}


def hold(modules: Iterable[nn.Module], user: str) -> None:
    """Run `modules` under modes for the sake of `user`, until it lets go of them."""
    for module in modules:
        forward = module.__dict__.get("forward")
        if not isinstance(forward, RoundedForward):
            forward = RoundedForward(module)
            forward.put()
        forward.users.add(user)


def let_go(modules: Iterable[nn.Module], user: str) -> None:
    """Give `modules` their forward back where no other user holds them."""
    for module in modules:
        forward = module.__dict__.get("forward")
        if isinstance(forward, RoundedForward):
            forward.users.discard(user)
            if not forward.users:
                forward.take_off()
