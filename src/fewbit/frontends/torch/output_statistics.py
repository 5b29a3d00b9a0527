"""What layers put out, gathered over whole runs of the model: for static ranges of outputs and for corrections."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.catalogue import lookup
from fewbit.frontends.torch.calls import run_batch
from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.statistics import STATISTICS


def output_statistics(model: nn.Module, wanted: Mapping[str, str], batches: Sequence[Any]) -> dict[str, Any]:
    """Return the statistic that is `wanted` of each layer's output; nothing for a layer that no batch reaches."""
    found: dict[str, Any] = {}

    @torch.no_grad()
    def take(module: nn.Module, _: Any, output: Tensor, *, name: str) -> None:
        rows = output.movedim(-1 - _spatial(module), -1)
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


def _spatial(module: nn.Module) -> int:
    """Return the number of axes behind the channels of a layer's output."""
    if isinstance(module, QuantizedLayer):
        return module.spatial
    convolution = Convolution.of(module)
    return len(convolution.kernel) if convolution else 0
