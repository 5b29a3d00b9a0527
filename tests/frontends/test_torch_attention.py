"""Products inside attention are found by one run of any model, and belong to the module that makes both of them."""

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

from fewbit.errors import PlanError
from fewbit.frontends.torch.attention import find_products

X = torch.randn(2, 6, 16, generator=torch.Generator().manual_seed(0))


def names(model, batch=X):
    return [layer.name for layer in find_products(model.eval(), batch)]


def both(prefix):
    return [f"{prefix}.query_key", f"{prefix}.probabilities_value"]


class Attention(nn.Module):
    """One head; `scores` and `output` say how."""

    def __init__(self, scores=None, output=None):
        super().__init__()
        self.project = nn.Linear(16, 48)
        self.scores = scores or (lambda q, k: (q @ k.mT).softmax(-1))
        self.output = output or (lambda p, v: p @ v)

    def forward(self, x):
        q, k, v = self.project(x).chunk(3, -1)
        return self.output(self.scores(q, k), v)


class Around(nn.Module):
    def __init__(self, *inside):
        super().__init__()
        self.inside = nn.ModuleList(inside)

    def forward(self, x):
        for module in self.inside:
            x = module(x)
        return x


WAYS = {
    "softmax by hand": Attention(lambda q, k: (s := (q @ k.mT).exp()) / s.sum(-1, keepdim=True)),
    "sigmoid": Attention(lambda q, k: torch.sigmoid(torch.bmm(q, k.transpose(1, 2)))),
    "written into a buffer": Attention(lambda q, k: torch.bmm(q, k.mT, out=torch.empty(2, 6, 6)).softmax(-1)),
    "part by part": Attention(lambda q, k: torch.cat([(q[:, i : i + 2] @ k.mT).softmax(-1) for i in (0, 2, 4)], 1)),
    "set item": Attention(lambda q, k: torch.zeros(2, 6, 6).index_put_((torch.arange(2),), (q @ k.mT).softmax(-1))),
    "columns": Attention(lambda q, k: (q @ k.mT).softmax(-1).mT, lambda p, v: (v.mT @ p).mT),
    "einsum": Attention(
        lambda q, k: torch.einsum("bqd,bkd->bqk", q, k).softmax(-1), lambda p, v: torch.einsum("bqk,bkd->bqd", p, v)
    ),
}


@pytest.mark.parametrize("way", WAYS)
def test_products_are_found_however_they_are_computed(way):
    assert names(Around(WAYS[way])) == both("inside.0")


def test_a_module_that_only_wraps_a_product_leaves_it_to_the_attention_around_it():
    class Product(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, a, b):
            return self.scale * (a @ b)

    class Wrapping(Attention):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.softmax = Product(), Product(), nn.Softmax(-1)

        def forward(self, x):
            q, k, v = self.project(x).chunk(3, -1)
            return self.second(self.softmax(self.first(q, k.mT)), v)

    assert names(Around(Wrapping())) == both("inside.0")


def test_heads_that_talk_through_a_layer_are_still_one_attention():
    class Talking(nn.Module):
        def __init__(self):
            super().__init__()
            self.mix = nn.Linear(4, 4)

        def forward(self, x):
            heads = x.unflatten(-1, (4, 4)).transpose(1, 2)
            scores = self.mix((heads @ heads.mT).movedim(1, -1)).movedim(-1, 1)
            return (scores.softmax(-1) @ heads).transpose(1, 2).flatten(2)

    assert names(Around(Talking())) == both("inside.0")


def test_a_product_with_a_weight_is_none_of_them():
    class Weights(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.eye(16))
            self.register_buffer("table", torch.eye(16))

        def forward(self, x):
            return (x @ self.weight.mT.contiguous()).relu() @ (2 * self.table)

    assert names(Around(Weights(), Attention())) == both("inside.1")


def test_queries_that_a_model_has_learned_are_activations_behind_their_layer():
    class Pooling(nn.Module):
        def __init__(self):
            super().__init__()
            self.query, self.project = nn.Parameter(torch.randn(1, 3, 16)), nn.Linear(16, 16)

        def forward(self, x):
            return (self.project(self.query) @ x.mT).softmax(-1) @ x

    assert names(Around(Pooling())) == both("inside.0")


def test_a_product_whose_outcome_no_other_takes_is_not_of_attention():
    class Similarity(Around):
        def forward(self, x):
            x = super().forward(x)
            return x @ x.mT

    assert names(Similarity(Attention())) == both("inside.0")


def test_several_in_one_module_are_one_and_shared_modules_have_their_first_name():
    shared = Attention()

    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def forward(self, x):
            return torch.cat([functional.scaled_dot_product_attention(*[h] * 3) for h in self.layer(x).chunk(2, -1)], 2)

    assert names(Around(shared, Heads(), shared)) == both("inside.0") + both("inside.1")


def test_the_model_itself_may_be_the_attention():
    found = find_products(Attention(), X)
    assert [layer.name for layer in found] == ["query_key", "probabilities_value"]
    assert [layer.operands for layer in found] == [("query", "key"), ("probabilities", "value")]
    assert {(layer.kind, layer.shape, layer.module_class) for layer in found} == {("attention", (0, 0), "Attention")}


@pytest.mark.parametrize("need_weights", [True, False])
def test_multihead_attention_is_found_behind_its_fast_path(need_weights):
    attention = nn.MultiheadAttention(16, 4, batch_first=True).eval()
    batch = {"query": X, "key": X, "value": X, "need_weights": need_weights}
    assert names(attention, batch) == ["query_key", "probabilities_value"]
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True), 2)
    assert names(encoder) == both("layers.0.self_attn") + both("layers.1.self_attn")


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    ("name", "maker"),
    [
        ("Llama", "model.layers.{}.self_attn"), ("GPT2", "transformer.h.{}.attn"),
        ("Bert", "encoder.layer.{}.attention.self"), ("ViT", "vit.layers.{}.attention"),
        ("ModernBert", "layers.{}.attn"),
    ],
)  # fmt: skip
def test_every_attention_of_a_transformers_model_is_found(tiny, name, maker, attention):
    model, batches = tiny(name)
    model.set_attn_implementation(attention)
    count = 6 if name == "ModernBert" else 3
    assert names(model, batches[0]) == [own for layer in range(count) for own in both(maker.format(layer))]


def test_an_encoder_decoder_has_those_that_look_across_too(tiny):
    model, batches = tiny("T5")
    found = names(model, batches[0])
    assert len(found) == 2 * (3 + 2 * 2)
    assert "decoder.block.1.layer.1.EncDecAttention.query_key" in found


def test_finding_leaves_the_model_as_it_was(tiny):
    model, batches = tiny("Llama")
    model.train()
    before = {name: set(vars(module)) for name, module in model.named_modules()}
    find_products(model, batches[0])
    assert {name: set(vars(module)) for name, module in model.named_modules()} == before
    assert model.training


def test_a_language_model_needs_no_batch_and_no_numbers():
    config = transformers.GPT2Config(n_layer=1, n_embd=16, n_head=2, vocab_size=50, bos_token_id=0, eos_token_id=0)
    with torch.device("meta"):
        model = transformers.GPT2LMHeadModel(config)
    assert names(model, None) == both("transformer.h.0.attn")


def test_what_cannot_be_run_says_what_to_give(tiny):
    with pytest.raises(PlanError, match=r"Attention: the products inside attention show in a run .*; give a batch"):
        find_products(Attention(), None)
    vision, _ = tiny("ViT")
    with pytest.raises(PlanError, match="give a batch to run it on: `batch` of plan, `calibration` or `evaluation`"):
        find_products(vision, None)
    with torch.device("meta"):
        model = transformers.T5ForConditionalGeneration(tiny("T5")[0].config).eval()
    with pytest.raises(PlanError, match=r"it does not run without numbers .*; load it and give the module"):
        find_products(model, None)


def test_a_module_with_something_of_a_products_name_is_refused():
    taken = Attention()
    taken.query_key = nn.Identity()
    with pytest.raises(PlanError, match="query_key: its module has something of that name already; rename that"):
        find_products(taken, X)
