"""Runs behind a change: the same outputs as whole runs to the bit, with less to run."""

import pytest
import torch
from torch import nn

from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.frontends.torch.runs_behind import RunsBehind
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme


@pytest.fixture
def llama():
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=2,
        tie_word_embeddings=False,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval(), [torch.randint(0, 64, (2, 12)), torch.randint(0, 64, (1, 7))]


def test_outputs_are_those_of_whole_runs_to_the_bit(llama):
    model, batches = llama
    frontend = TorchFrontend()
    layers = frontend.layers(model)
    runs = RunsBehind(model, layers, batches)
    assert runs.reuses
    for layer in layers:
        qtensor = quantize(frontend.weight(model, layer), parse_scheme("int3 g32"))
        replacement = frontend.replacement(model, layer, qtensor)
        replacement.install()
        found = [output.logits for output in runs.outputs([layer.name])]
        wanted = [frontend.run(model, batch).logits for batch in batches]
        replacement.restore()
        assert all(map(torch.equal, found, wanted)), layer.name
        assert not all(torch.equal(a, b.logits) for a, b in zip(found, runs.floats, strict=True))


def test_blocks_before_the_change_do_not_run(llama):
    model, batches = llama
    layers = TorchFrontend().layers(model)
    runs = RunsBehind(model, layers, batches)
    called = []
    for number, block in enumerate(model.model.layers):
        block.mlp.register_forward_hook(lambda *_, number=number: called.append(number))
    for name, expected in {
        "model.layers.1.mlp.up_proj": {1, 2},
        "lm_head": set(),
        "model.embed_tokens": {0, 1, 2},
    }.items():
        called.clear()
        list(runs.outputs([name]))
        assert set(called) == expected, name
    called.clear()
    list(runs.outputs(["model.layers.2.mlp.up_proj", "model.layers.1.self_attn.q_proj"]))
    assert set(called) == {1, 2}
    assert all("forward" not in vars(block) for block in model.model.layers)


def test_a_model_whose_parts_count_on_blocks_having_run_runs_as_a_whole():
    class Counting(nn.Module):
        """Its output depends on what its blocks leave behind, which no output of theirs shows."""

        def __init__(self):
            super().__init__()
            self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.ReLU()) for _ in range(2))
            self.seen = 0
            for block in self.blocks:
                block[0].register_forward_hook(self._count)

        def _count(self, *_):
            self.seen += 1

        def forward(self, x):
            self.seen = 0
            for block in self.blocks:
                x = block(x)
            return x * self.seen

    model = Counting()
    runs = RunsBehind(model, TorchFrontend().layers(model), [torch.randn(3, 8)])
    assert not runs.reuses
    assert all(map(torch.equal, runs.outputs(["blocks.1.0"]), runs.floats))


def test_a_model_without_blocks_runs_as_a_whole():
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    runs = RunsBehind(model, TorchFrontend().layers(model), [torch.randn(3, 8)])
    assert not runs.reuses
    assert all(map(torch.equal, runs.outputs(["2"]), runs.floats))
