"""What the torch front end sees as layers, in modules of every shape."""

import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.frontends.torch.layers import find_layers


class Branches(nn.Module):
    """A home-made module: two branches, a shared layer, a norm."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(32, 16)
        self.right = nn.Linear(32, 16, bias=False)
        self.again = self.left
        self.norm = nn.LayerNorm(32)

    def forward(self, x):
        return self.norm(torch.cat([self.left(x).relu(), self.right(x)], dim=-1))


class TinyLanguageModel(nn.Module):
    def __init__(self, *, tied):
        super().__init__()
        self.words = nn.Embedding(300, 16)
        self.mix = nn.Linear(16, 16)
        self.scores = nn.Linear(16, 300, bias=False)
        if tied:
            self.scores.weight = self.words.weight

    def forward(self, tokens):
        return self.scores(self.mix(self.words(tokens)))


def kinds(model):
    return {layer.name: layer.kind for layer in find_layers(model)}


def test_a_home_made_module_shows_its_linear_layers_once_each():
    assert kinds(Branches()) == {"left": "linear", "right": "linear"}


def test_conv1d_of_gpt2_is_a_linear_layer_with_its_shape_as_out_in():
    config = GPT2Config(n_layer=1, n_embd=32, n_head=2, vocab_size=300, n_positions=16)
    model = GPT2LMHeadModel(config)
    layers = {layer.name: layer for layer in find_layers(model)}
    fused = layers["transformer.h.0.attn.c_attn"]
    assert (fused.kind, fused.shape, fused.stored) == ("linear", (96, 32), (32, 96))
    weight = TorchFrontend().weight(model, fused)
    assert torch.equal(weight, model.transformer.h[0].attn.c_attn.weight.T)
    assert layers["lm_head"].kind == "head"
    assert layers["lm_head"].tied == ("transformer.wte",)
    assert layers["transformer.wte"].tied == ("lm_head",)


@pytest.mark.parametrize("tied", [True, False])
def test_the_layer_that_scores_the_vocabulary_is_the_head(tied):
    model = TinyLanguageModel(tied=tied)
    assert kinds(model) == {"words": "embedding", "mix": "linear", "scores": "head"}


def test_a_classifier_is_not_a_head():
    model = nn.Sequential(nn.Embedding(10, 8), nn.Linear(8, 10))
    assert kinds(model) == {"0": "embedding", "1": "linear"}


def test_subclasses_and_embeddings_that_rewrite_themselves_are_left_alone():
    class Own(nn.Linear):
        pass

    assert kinds(nn.Sequential(Own(4, 4), nn.Embedding(4, 4, max_norm=1.0), nn.Linear(4, 4))) == {"2": "linear"}
    assert list(kinds(nn.MultiheadAttention(8, 2))) == []


def test_weights_that_would_overflow_are_refused_by_name():
    from fewbit.errors import NonFiniteError

    model = nn.Sequential(nn.Linear(4, 4))
    with torch.no_grad():
        model[0].weight[1, 2] = 3e38
    with pytest.raises(NonFiniteError, match=r"0: a weight of magnitude 3e\+38 would overflow float32 arithmetic"):
        TorchFrontend().weight(model, find_layers(model)[0])
