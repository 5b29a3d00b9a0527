"""Blocks get the inputs that the whole model would give them, whatever has become of the blocks before."""

import pytest
import torch
from torch import nn
from transformers import DynamicCache

from fewbit.errors import RecipeError
from fewbit.frontends.torch.block_inputs import walk_blocks
from fewbit.frontends.torch.blocks import find_blocks
from fewbit.frontends.torch.calls import run_batch, same
from fewbit.frontends.torch.layers import find_layers


def names_of(model):
    return [block.name for block in find_blocks(model, find_layers(model)).blocks]


@pytest.mark.parametrize(
    ("architecture", "captured"),
    [
        ("Llama", ["model.layers.0"]),
        ("GPT2", ["transformer.h.0"]),
        ("Bert", ["encoder.layer.0"]),
        ("ViT", ["vit.layers.0"]),
        ("T5", ["encoder.block.0", "decoder.block.0"]),
        ("Bart", ["model.encoder.layers.0", "model.decoder.layers.0"]),
        ("Mixtral", ["model.layers.0"]),
        ("ModernBert", ["layers.0", "layers.1"]),
    ],
)
def test_each_block_gets_what_the_model_with_its_changed_prefix_gives(tiny, architecture, captured, walk_and_disturb):
    model, batches = tiny(architecture)
    assert walk_and_disturb(model, names_of(model), batches) == captured


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Bert", "ViT", "T5"])
def test_the_last_block_of_an_unchanged_model_gives_the_float_output_to_the_bit(tiny, architecture, watched):
    model, batches = tiny(architecture)
    names = names_of(model)
    expected = [output for _, output in watched(model, names, batches)[names[-1]]]
    *_, last = walk_blocks(model, names, batches)
    assert last.name == names[-1]
    assert all(same(output, wanted) for output, wanted in zip(last.outputs(), expected, strict=True))


class Wrapper(nn.Module):
    """A module of one's own around a language model: its forward knows of no cache, or always makes one."""

    def __init__(self, inner, *, always):
        super().__init__()
        self.inner, self.always = inner, always

    def forward(self, tokens):
        cache = {"past_key_values": DynamicCache(), "use_cache": True} if self.always else {}
        return self.inner(tokens, **cache).logits


@pytest.mark.parametrize("always", [False, True])
def test_no_cache_grows_while_blocks_are_repeated(tiny, always, walk_and_disturb):
    model, _ = tiny("Llama")
    wrapped = Wrapper(model, always=always)
    tokens = [torch.arange(3, 27)[None], torch.arange(30, 54)[None]]
    names = names_of(wrapped)
    for block in walk_blocks(wrapped, names, tokens):
        assert all(call.kwargs["past_key_values"] is None for call in block.calls)
        once, twice = list(block.outputs()), list(block.outputs())
        assert all(torch.equal(*pair) for pair in zip(once, twice, strict=True))
    assert walk_and_disturb(wrapped, names, tokens) == ["inner.model.layers.0"]


def test_a_cache_that_a_batch_asks_for_is_declined(tiny):
    model, batches = tiny("Llama")
    blocks = walk_blocks(model, names_of(model), [{**batches[0], "use_cache": True}])
    assert next(blocks).calls[0].kwargs["use_cache"] is False


def test_modes_hooks_and_configurations_are_as_before_also_after_an_error(tiny):
    model, batches = tiny("GPT2")
    model.train()
    model.transformer.h[1].eval()
    before = [module.training for module in model.modules()]

    def unchanged():
        return (
            [module.training for module in model.modules()] == before
            and not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
            and model.config.use_cache is True
        )

    for block in walk_blocks(model, names_of(model), batches):
        assert unchanged()
        next(block.outputs())
        assert unchanged()
    with pytest.raises(IndexError):
        list(walk_blocks(model, names_of(model), [torch.full((1, 4), 10_000)]))
    assert unchanged()


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x):
        return x + self.linear(x)


def sequence():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 8), Block(), Block(), Block())


BATCHES = [torch.randn(6, 8, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]


def test_inputs_of_one_block_are_held_and_let_go_of_as_they_are_used():
    model = sequence()
    previous = None
    for block in walk_blocks(model, names_of(model), BATCHES):
        assert previous is None or previous.calls == []
        assert len(block.calls) == len(BATCHES)
        previous = block


def test_no_batch_is_an_error():
    with pytest.raises(RecipeError, match="no calibration batch to run the blocks on; give one at least"):
        next(walk_blocks(sequence(), ["1"], []))


def test_nothing_outside_the_blocks_runs_for_a_chained_one():
    model = sequence()
    forwards = []
    model[0].register_forward_hook(lambda *_: forwards.append(1))
    assert [block.chained for block in walk_blocks(model, names_of(model), BATCHES)] == [False, True, True]
    assert len(forwards) == 1 + len(BATCHES)  # the trace, and the capture of the first block


def test_a_language_model_scores_one_position_only_unless_a_loss_needs_all(tiny):
    model, batches = tiny("Llama")
    assert run_batch(model, batches[0]).logits.shape == (2, 1, 300)
    assert run_batch(model, {**batches[0], "labels": batches[0]["input_ids"]}).logits.shape == (2, 24, 300)
