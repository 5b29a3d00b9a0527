"""What quantized layers put out, gathered over whole runs of the model: for the static ranges of outputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.catalogue import lookup
from fewbit.frontends.torch.calls import run_batch
from fewbit.statistics import STATISTICS


def output_statistics(model: nn.Module, wanted: Mapping[str, str], batches: Sequence[Any]) -> dict[str, Any]:
    """Return the statistic that is `wanted` of each layer's output; nothing for a layer that no batch reaches."""
    found: dict[str, Any] = {}

    @torch.no_grad()
    def take(module: Any, _: Any, output: Tensor, *, name: str) -> None:
        rows = output.movedim(-1 - module.spatial, -1)
        if name not in found:
            found[name] = lookup(STATISTICS, wanted[name], what="statistic").init(rows.shape[-1], rows)
        found[name].update(rows)

    handles = [model.get_submodule(name).register_forward_hook(partial(take, name=name)) for name in wanted]
    try:
        for batch in batches:
            run_batch(model, batch, every_score=True)
    finally:
        for handle in handles:
            handle.remove()
    return found
