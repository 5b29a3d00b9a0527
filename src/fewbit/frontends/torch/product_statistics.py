"""What goes into the products inside attention, gathered over whole runs of the model: for their static ranges."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.catalogue import lookup
from fewbit.errors import FewbitError
from fewbit.frontends.torch.attention import maker_of
from fewbit.frontends.torch.attention_product import AttentionProduct
from fewbit.frontends.torch.calls import run_batch
from fewbit.frontends.torch.mode_forward import guards, watched
from fewbit.frontends.torch.product_mode import Takes
from fewbit.interfaces import Layer
from fewbit.statistics import STATISTICS


def product_statistics(
    model: nn.Module, products: Sequence[Layer], wanted: Mapping[str, str], batches: Sequence[Any]
) -> dict[str, dict[str, Any]]:
    """Return by operand the statistic that is `wanted` of each product; nothing for one that no batch reaches."""
    found: dict[str, dict[str, Any]] = {}

    @torch.no_grad()
    def take(product: AttentionProduct, *, name: str) -> Tensor:
        seen = found.setdefault(name, {})
        for factor in product.factors:
            # The numbers of keys differ from run to run: all of them are one channel.
            rows = factor.tensor.to(torch.float32).reshape(-1, 1)
            if factor.name not in seen:
                seen[factor.name] = lookup(STATISTICS, wanted[name], what="statistic").init(1, rows)
            try:
                seen[factor.name].update(rows)
            except FewbitError as error:
                raise type(error)(f"{name}.{factor.name}: {error}") from error
        return product.plain()

    with watched(watching(model, products, {name: partial(take, name=name) for name in wanted})):
        for batch in batches:
            run_batch(model, batch, every_score=True)
    return found


def watching(model: nn.Module, products: Sequence[Layer], takes: Mapping[str, Any]) -> dict[nn.Module, Takes]:
    """Return what each module is to run under so that `takes`, by product, get what they are named after."""
    wanted: dict[nn.Module, dict[Any, Any]] = defaultdict(dict)
    for layer in products:
        maker, role = maker_of(model, layer)
        wanted[maker] |= {role: takes[layer.name]} if layer.name in takes else {}
    return {**{module: {} for module in guards(model, list(wanted))}, **wanted}
