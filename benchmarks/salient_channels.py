"""The salient channels of a quantized model put back as floats: what AWQ's authors compare their scaling with.

Of each linear layer the share of the input channels with the largest mean |x| keeps its float columns; the others keep
their codes. Simulated, no file holds it. Source: Lin et al. 2023, arXiv 2306.00978, section 3.1.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.statistics.channel_magnitude import ChannelMagnitude


def with_salient_channels(model: nn.Module, reference: nn.Module, batches: Sequence[Any], share: float) -> float:
    """Replace the quantized linear layers of `model` by float ones with salient columns of `reference`.

    Returns how many columns were put back, as a share of all.
    """
    names = [name for name, module in model.named_modules() if isinstance(module, QuantizedLayer)]
    kept = columns = 0
    for name, magnitude in magnitudes(reference, names, batches).items():
        weight: Any = reference.get_submodule(name).weight
        bias: Any = reference.get_submodule(name).bias
        quantized: Any = model.get_submodule(name)
        values = quantized.qtensor.dequantize().to(weight.dtype)
        salient = magnitude.argsort(descending=True)[: max(1, round(share * len(magnitude)))]
        values[:, salient] = weight.detach()[:, salient]
        kept, columns = kept + len(salient), columns + len(magnitude)
        model.set_submodule(name, linear(values, bias))
    return kept / columns


@torch.no_grad()
def magnitudes(model: nn.Module, names: Sequence[str], batches: Sequence[Any]) -> dict[str, Tensor]:
    """Return mean |x| of the inputs of layers, (in,) by name."""
    seen: dict[str, ChannelMagnitude] = {}
    hooks = []
    for name in names:

        def hook(module: Any, args: tuple[Tensor, ...], name: str = name) -> None:
            rows = args[0].detach()
            seen.setdefault(name, ChannelMagnitude.init(module.weight.shape[1], rows)).update(rows)

        hooks.append(model.get_submodule(name).register_forward_pre_hook(hook))
    try:
        for batch in batches:
            model(batch)
    finally:
        for own in hooks:
            own.remove()
    return {name: torch.from_numpy(own.result()[1]) for name, own in seen.items()}


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return a linear layer that computes with `weight` (out, in)."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, dtype=weight.dtype)
    with torch.no_grad():
        made.weight.copy_(weight)
        if bias is not None:
            made.bias.copy_(bias)
    return made
