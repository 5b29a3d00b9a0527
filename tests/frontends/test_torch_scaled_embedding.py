"""Subclasses of `nn.Embedding` are layers where a run proves what they do, and their factor stays."""

import gguf
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.frontends.torch.float_copy import float_copy
from fewbit.frontends.torch.layers import find_layers
from fewbit.frontends.torch.scaled_embedding import Lookup, ScaledEmbedding

FAMILIES = ["gemma", "gemma2", "gemma3"]


class Scaled(nn.Embedding):
    def __init__(self, *, persistent=False):
        super().__init__(10, 4)
        self.register_buffer("by", torch.tensor(2.5), persistent=persistent)

    def forward(self, ids):
        return super().forward(ids) * self.by.to(self.weight.dtype)


class Named(nn.Embedding):
    """Does what its base does."""


class ByANumber(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 3


class Shifted(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids + 2)


class Added(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) + 1.0


class Twice(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * 2.0 * 3.0


class ByChannel(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * torch.arange(4.0)


class ByTheLargest(nn.Embedding):
    def forward(self, ids):
        return super().forward(ids) * ids.max()


class Learned(nn.Embedding):
    def __init__(self):
        super().__init__(10, 4)
        self.by = nn.Parameter(torch.tensor(2.0))

    def forward(self, ids):
        return super().forward(ids) * self.by


class Positions(nn.Embedding):
    def forward(self, mask, past):
        return super().forward(mask.cumsum(1) + past)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_embedding_of_gemma_is_a_layer_that_shares_its_weight_with_the_head(family, language_model):
    model = language_model(family)
    found = {layer.kind: layer for layer in find_layers(model)}
    assert found["embedding"].name == "model.embed_tokens"
    assert found["embedding"].tied == ("lm_head",)
    assert found["head"].tied == ("model.embed_tokens",)
    # Plans are made of models without numbers.
    assert Lookup.of(model.model.embed_tokens.to("meta")).factor.is_meta


@pytest.mark.parametrize(
    ("module", "factor"),
    [(nn.Embedding(10, 4), None), (Named(10, 4), None), (ByANumber(10, 4), 3), (Scaled(), 2.5)],
    ids=["plain", "named", "number", "buffer"],
)
def test_rows_are_looked_up_and_multiplied_by_at_most_one_number(module, factor):
    assert Lookup.of(module) == Lookup(factor)
    ids = torch.tensor([[1, 2, 9]])
    quantized = fb.quantize(nn.Sequential(module), fb.Recipe([fb.Rule(".*", weight="int8 channel")])).model
    expected = quantized[0].qtensor.dequantize()[ids] * (1.0 if factor is None else factor)
    assert torch.equal(quantized(ids), expected)
    assert torch.equal(float_copy(quantized)(ids), expected)


@pytest.mark.parametrize(
    "module",
    [
        Shifted(10, 4), Added(10, 4), Twice(10, 4), ByChannel(10, 4), ByTheLargest(10, 4), Learned(), Positions(10, 4),
        Scaled(persistent=True), nn.Embedding(10, 4, max_norm=1.0), nn.Linear(4, 4),
    ],
    ids=[
        "shifted", "added", "twice", "by channel", "by the largest", "learned", "positions", "stored factor",
        "max_norm", "linear",
    ],
)  # fmt: skip
def test_what_does_anything_else_is_left_alone(module):
    assert Lookup.of(module) is None


def test_a_factor_is_rounded_to_the_type_of_the_rows_as_the_float_module_does_it():
    module = Scaled().to(torch.bfloat16)
    module.by = torch.tensor(1.001)
    made = ScaledEmbedding(10, 4, module.by).to(torch.bfloat16)
    made.load_state_dict({"weight": module.weight})
    ids = torch.arange(10)
    assert torch.equal(made(ids), module(ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_file_has_the_table_of_gemma_in_few_bits_and_gives_the_same_scores(family, language_model, tmp_path):
    model, tokens = language_model(family), torch.arange(3, 40)[None]
    with torch.no_grad():
        float_scores = model(tokens).logits
    result = fb.quantize(model, "q8_0", to="gguf")
    file = result.save(tmp_path / "m.gguf")
    types = {own.name: own.tensor_type for own in gguf.GGUFReader(file).tensors}
    assert types["token_embd.weight"] == gguf.GGMLQuantizationType.Q8_0
    assert "output.weight" not in types
    with torch.no_grad():
        scores = result.model(tokens).logits
        read = fb.load(file).model(tokens).logits
    assert torch.allclose(read, scores, rtol=0, atol=1e-4)  # norms come back from 1 + w, to half a unit of 1
    # The scores are those of eight bits; without its factor the table gives others altogether.
    lost = (scores - float_scores).std()
    assert lost < 0.05 * float_scores.std()  # rounding to 8 bits in blocks of 32 is 1 %, through a few layers
    result.model.model.embed_tokens.factor.fill_(1.0)
    with torch.no_grad():
        assert (result.model(tokens).logits - float_scores).std() > 5 * lost
