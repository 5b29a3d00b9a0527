"""Switch a product inside attention between its float and its rounded form, at the module that makes it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import nn

from fewbit.activation import Activation
from fewbit.frontends.torch.attention import maker_of
from fewbit.frontends.torch.attention_product import Role
from fewbit.frontends.torch.mode_forward import guards
from fewbit.frontends.torch.rounded_product import RoundedProduct, hold, let_go
from fewbit.interfaces import Layer


class ProductForms:
    """A product in its two forms; the float one is installed at first."""

    def __init__(
        self, layer: Layer, made: tuple[nn.Module, Role], rounded: RoundedProduct, around: Sequence[nn.Module]
    ) -> None:
        self.layer, self.rounded = layer, rounded
        #: The module that makes it, and which of both it is.
        self.maker, self.role = made
        #: Modules that have to run under a mode too while this form is installed.
        self.around = around

    def install(self) -> None:
        """Put the rounded form into the model."""
        self.maker._modules[self.role] = self.rounded
        hold((self.maker, *self.around), self.layer.name)

    def restore(self) -> None:
        """Put the float form back."""
        self.maker._modules.pop(self.role, None)
        let_go((self.maker, *self.around), self.layer.name)


def product_forms(
    model: nn.Module, products: Sequence[Layer], activations: Mapping[str, Mapping[str, Activation]]
) -> list[ProductForms]:
    """Return the rounded forms of those `products` that have `activations`, by operand; none is installed yet."""
    device = next(iter((*model.parameters(), *model.buffers())), torch.empty(0)).detach()
    rounded = {
        name: RoundedProduct.of({operand: own.like(device) for operand, own in given.items()})
        for name, given in activations.items()
    }
    return forms_of(model, products, rounded)


def forms_of(model: nn.Module, products: Sequence[Layer], rounded: Mapping[str, RoundedProduct]) -> list[ProductForms]:
    """Return the forms of those `products` that `rounded` has something for; none is installed yet."""
    made = {layer.name: maker_of(model, layer) for layer in products}
    plain = {maker for maker, _ in made.values()} - {made[name][0] for name in rounded}
    forms = []
    for layer in products:
        if layer.name in rounded:
            maker = made[layer.name][0]
            rounded[layer.name].train(maker.training)
            # Of modules inside whose products stay float the maker has to know.
            around = [*(own for own in maker.modules() if own in plain), *guards(model, [maker])]
            forms.append(ProductForms(layer, made[layer.name], rounded[layer.name], around))
    return forms
