"""Keys and values of a text that is written stay where they are."""

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from fewbit.interfaces import Silent
from fewbit.synthetic import self_text
from fewbit.synthetic.cache_room import take_room

SIZES = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, num_key_value_heads=1, initializer_range=0.5)).eval()


def gpt2():
    torch.manual_seed(0)
    return GPT2LMHeadModel(GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=64)).eval()


def mistral():
    """A model whose layers see a window of 4 tokens."""
    torch.manual_seed(0)
    return MistralForCausalLM(
        MistralConfig(**SIZES, num_key_value_heads=1, sliding_window=4, initializer_range=0.5)
    ).eval()


def written(model):
    return self_text.written_by(model, sequences=3, length=24, seed=0, progress=Silent())


@pytest.mark.parametrize("make", [llama, gpt2, mistral])
def test_a_model_writes_the_same_text_as_with_the_cache_of_transformers(make, monkeypatch):
    roomy = written(make())
    monkeypatch.setattr(self_text, "take_room", lambda cache, length: None)
    assert all(torch.equal(*pair) for pair in zip(roomy, written(make()), strict=True))


@torch.no_grad()
def test_room_is_taken_once_and_holds_what_the_cache_would():
    model = llama()
    tokens = torch.arange(10)[None]
    cache = model(tokens[:, :3], use_cache=True).past_key_values
    take_room(cache, 10)
    places = set()
    for place in range(3, 10):
        cache = model(tokens[:, place : place + 1], past_key_values=cache, use_cache=True).past_key_values
        places |= {(layer.keys.data_ptr(), layer.values.data_ptr()) for layer in cache.layers}
    assert len(places) == len(cache.layers)
    assert cache.get_seq_length() == 10
    whole = model(tokens, use_cache=True).past_key_values
    for layer, expected in zip(cache.layers, whole.layers, strict=True):
        # A token at a time is summed in another order than ten at once.
        torch.testing.assert_close(layer.keys, expected.keys)
        torch.testing.assert_close(layer.values, expected.values)


@torch.no_grad()
def test_windows_keep_the_layers_that_they_have():
    cache = mistral()(torch.arange(3)[None], use_cache=True).past_key_values
    take_room(cache, 24)
    assert all("update" not in vars(layer) for layer in cache.layers)
