"""Models with one layer that matters most, and what opens them as `fewbit.allocate` does."""

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.allocation.candidates import Candidates
from fewbit.allocation.opening import Asked, opened
from fewbit.pipeline import Options

THREE = "int3 g32,int4 g32,int8 g32"

#: What the outputs of the planted layer are multiplied by downstream.
GAIN = 30.0


class Planted(nn.Module):
    """Layers side by side whose outputs are summed, one of them amplified."""

    def __init__(self, gain=GAIN):
        super().__init__()
        torch.manual_seed(3)
        self.layers = nn.ModuleList(nn.Linear(32, 32, bias=False) for _ in range(4))
        self.gains = [1.0, 1.0, gain, 1.0]

    def forward(self, x):
        return sum(gain * layer(x) for gain, layer in zip(self.gains, self.layers, strict=True))


class PlantedLanguage(Planted):
    """The same between a table and the scores of 40 tokens, neither of which is a layer."""

    def __init__(self, gain=GAIN):
        super().__init__(gain)
        self.table, self.scores = nn.Parameter(torch.randn(40, 32)), nn.Parameter(0.02 * torch.randn(40, 32))

    def forward(self, tokens):
        return super().forward(self.table[tokens]) @ self.scores.T


@pytest.fixture
def planted():
    """Makes a model whose layer `layers.2` is amplified, and batches for it."""

    def planted(language, gain=GAIN):
        model = (PlantedLanguage if language else Planted)(gain)
        torch.manual_seed(4)
        batches = [torch.randint(0, 40, (2, 16)) if language else torch.randn(24, 32) for _ in range(2)]
        return model.eval(), batches

    return planted


@pytest.fixture
def llama():
    """A language model of transformers with three blocks, an embedding and a head of its own; and batches."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            if parameter.ndim == 2:
                parameter.mul_(3)  # random layers add little to the stream, and round away
        model.lm_head.weight.mul_(10)
    return model, [torch.randint(0, 300, (2, 24)) for _ in range(2)]


@pytest.fixture
def opening():
    """Opens a model with candidates as a search does."""

    def opening(model, batches, candidates=THREE, algorithm="nearest", **values):
        wanted = Asked(
            candidates=Candidates.parse(candidates, algorithm, gguf=values.get("to") == "gguf"),
            **{"to": None, "dtype": "float16", "calibration": batches, "options": Options(), **values},
        )
        return opened(model, wanted)

    return opening


@pytest.fixture
def found():
    """Searches by the cheapest algorithm, and measures no whole model unless asked."""

    def found(model, batches, budget, candidates=THREE, **values):
        given = {"calibration": batches, "dtype": "float16", "algorithm": "nearest", "pairs": 16, "rounds": 0}
        return fb.allocate(model, budget, candidates, **{**given, **values})

    return found
