"""A home-made model of blocks with outlier channels behind its norms, and inputs for it."""

from __future__ import annotations

import pytest
import torch
from torch import nn


class Block(nn.Module):
    """Norm, up, ReLU, down, residual."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 96), nn.Linear(96, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.down(self.up(self.norm(x)).relu())


@pytest.fixture
def outliers() -> tuple[nn.Module, list[torch.Tensor]]:
    """Three blocks in which three of 64 channels are thirty times as large as the others, and batches."""
    torch.manual_seed(0)
    model = nn.Sequential(Block(), Block(), Block()).eval()
    with torch.no_grad():
        for block in model:
            block.norm.weight.uniform_(0.5, 1.5)
            block.norm.weight[:3] = 30.0
    return model, [torch.randn(32, 64) for _ in range(4)]


@pytest.fixture
def tiny_llama() -> tuple[nn.Module, list[torch.Tensor]]:
    """Two blocks of grouped-query attention with gains of very different size, and token ids."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.3,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "layernorm" in name:
                parameter.copy_(torch.exp(torch.randn(32)))
    return model, [torch.randint(0, 100, (4, 32)) for _ in range(2)]
