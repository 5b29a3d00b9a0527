"""smollm2-rotated computes what smollm2 computes, with weights that lie on no grid."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fewbit as fb
from fewbit.sources import open_source
from fewbit.sources.rotated import orthogonal, rotate


def tiny_llama(dtype):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=300, hidden_size=48, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    # Those of transformers compute in float32 whatever they are given.
    model.model.norm = norm()
    for block in model.model.layers:
        block.input_layernorm, block.post_attention_layernorm = norm(), norm()
    return model.to(dtype).eval()


def norm():
    made = torch.nn.RMSNorm(48, eps=1e-5)
    made.weight.data.uniform_(0.2, 3.0)
    return made


def test_the_matrix_is_orthogonal_and_the_same_for_a_seed():
    matrix = orthogonal(48, 0)
    assert np.abs(matrix @ matrix.T - np.eye(48)).max() < 1e-14
    assert np.array_equal(matrix, orthogonal(48, 0))
    assert not np.allclose(matrix, orthogonal(48, 1))


@torch.no_grad()
def test_rotation_is_exact_in_float64():
    model, tokens = tiny_llama(torch.float64), torch.arange(60)[None]
    expected, embedding = model(tokens).logits, model.model.embed_tokens.weight.clone()
    rotate(model, seed=0)
    assert (model(tokens).logits - expected).abs().max() < 1e-12 * expected.abs().max()
    assert (model.model.embed_tokens.weight - embedding).abs().max() > embedding.abs().max() / 2
    assert all((p == 1).all() for name, p in model.named_parameters() if "norm" in name)


def test_head_and_embedding_are_untied_and_stay_so():
    model = tiny_llama(torch.float32)
    rotate(model, seed=0)
    model.tie_weights()
    assert model.lm_head.weight is not model.model.embed_tokens.weight
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)
    plan = fb.plan(model, "w4a16")
    assert {row.layer.name: row.layer.tied for row in plan.rows if row.layer.tied} == {}


def levels(weight):
    """How many different values there are in a group of 32: at least and at most."""
    groups = weight.detach().reshape(-1, 32)[:4096]
    counts = [len(group.unique()) for group in groups]
    return min(counts), max(counts)


@pytest.mark.slow
def test_rotated_smollm2_is_smollm2_off_its_grid():
    plain, rotated = open_source("smollm2"), open_source("smollm2-rotated")
    sentence = "The Seine flows through Paris, the capital of France."
    text = plain.tokenizer()(sentence, return_tensors="pt").input_ids
    assert rotated.tokenizer()(sentence).input_ids == text[0].tolist()
    before, after = plain.load(), rotated.load()
    with torch.no_grad():
        expected, logits = before(text).logits, after(text).logits
    # Logits reach 32; every weight is rounded to float32 once more and 30 blocks add up: 1e-4 was measured.
    assert (logits - expected).abs().max() < 1e-3
    assert levels(before.model.layers[0].mlp.down_proj.weight)[1] <= 16
    for name, module in after.named_modules():
        if isinstance(module, torch.nn.Linear):
            assert levels(module.weight)[0] > 16, name


@pytest.mark.slow
def test_rotated_smollm2_is_planned_without_loading_and_has_a_head_of_its_own():
    source = open_source("smollm2-rotated")
    assert (source.name, source.storage_type) == ("smollm2-rotated", "float16")
    assert source.configuration()["tie_word_embeddings"] is False
    assert open_source("smollm2").configuration()["tie_word_embeddings"] is True
    plan = fb.plan("smollm2-rotated", "w4a16")
    head = next(row for row in plan.rows if row.layer.kind == "head")
    assert (head.layer.shape, head.layer.tied) == ((49152, 576), ())
    assert plan.bytes_before - fb.plan("smollm2", "w4a16").bytes_before == 2 * 49152 * 576
