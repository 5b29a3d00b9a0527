"""A low-rank change of a frozen linear layer: y + (alpha / r) B A x, with A (r, in) and B (out, r) in float.

A begins at random and B at 0, so that nothing is changed at first. Source: Hu et al., "LoRA", arXiv:2106.09685.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fewbit.errors import CheckpointError
from fewbit.frontends.torch.quantized import QuantizedLinear

#: What it is called inside of its layer.
ADAPTER = "adapter"


class LowRank(nn.Module):
    """The change; a child of the layer, whose output a hook adds it to."""

    def __init__(self, shape: tuple[int, int], rank: int, share: float, dropout: float) -> None:
        """Make it for a weight (out, in); `share` is what B A is multiplied by."""
        super().__init__()
        self.share, self.dropout = share, dropout
        self.down = nn.Parameter(torch.empty(rank, shape[1]))
        self.up = nn.Parameter(torch.zeros(shape[0], rank))

    def begin(self, generator: torch.Generator) -> None:
        """Draw A as `nn.Linear` draws its weight, and make B 0."""
        bound = 1.0 / math.sqrt(self.down.shape[1])
        drawn = torch.rand(self.down.shape, generator=generator) * (2.0 * bound) - bound
        with torch.no_grad():
            self.down.copy_(drawn)
            self.up.zero_()

    def forward(self, inputs: Tensor) -> Tensor:
        """Return what is added to the output for `inputs` (..., in), as (..., out)."""
        kept = functional.dropout(inputs.to(self.down.dtype), self.dropout, self.training)
        return functional.linear(functional.linear(kept, self.down), self.up) * self.share

    def on_output(self, _: nn.Module, arguments: tuple[Any, ...], named: Mapping[str, Any], output: Tensor) -> Tensor:
        """Add it to the output of the layer; a hook of it."""
        inputs = arguments[0] if arguments else named["input"]
        added: Tensor = self(inputs)
        return (output + added).to(output.dtype)

    @torch.no_grad()
    def change(self) -> Tensor:
        """Return what it stands for, as float32 (out, in)."""
        found: Tensor = (self.up.float() @ self.down.float()) * self.share
        return found

    def extra_repr(self) -> str:
        """Return its numbers, for `print(model)`."""
        return f"rank={len(self.down)}, share={self.share:g}, dropout={self.dropout:g}"


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, QuantizedLinear, LowRank]]:
    """Yield the layers of `model` with an adapter by name, each once."""
    for name, module in model.named_modules():
        adapter = module._modules.get(ADAPTER)
        if isinstance(module, QuantizedLinear) and isinstance(adapter, LowRank):
            yield name, module, adapter


def require_no_adapters(model: nn.Module) -> None:
    """Raise `CheckpointError` for a model that cannot be written as it computes."""
    for name, _, _ in adapted_layers(model):
        raise CheckpointError(
            f"{name} has an adapter beside its codes, which this layout has no place for; fewbit.merge_adapters "
            "puts it into the weight, fewbit.save_adapters writes it to a folder of its own"
        )
