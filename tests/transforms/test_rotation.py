"""Rotations: exact in float on architectures that no table knows, files as any other, and outliers spread."""

import copy

import numpy as np
import pytest
import torch
import transformers
from torch import nn

import fewbit as fb
from fewbit.errors import RecipeError
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.transforms import parse_transform
from fewbit.transforms.rotation import Rotation, mean_keeping, orthogonal

_SHAPE = {
    "vocab_size": 100, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
    "max_position_embeddings": 64,
}  # fmt: skip
_MODELS = {
    "Llama": ("LlamaForCausalLM", {**_SHAPE, "num_key_value_heads": 2, "tie_word_embeddings": True}),
    "Phi3": ("Phi3ForCausalLM", {**_SHAPE, "num_key_value_heads": 2, "pad_token_id": 0}),
    "Gemma": ("GemmaForCausalLM", {**_SHAPE, "num_key_value_heads": 1, "head_dim": 12}),
    "GPT2": ("GPT2LMHeadModel", {"n_layer": 2, "n_embd": 48, "n_head": 4, "vocab_size": 100, "n_positions": 64,
                                 "bos_token_id": 0, "eos_token_id": 0}),
    "GPTNeoX": ("GPTNeoXForCausalLM", _SHAPE),
    "OPT": ("OPTForCausalLM", {"hidden_size": 48, "ffn_dim": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
                               "vocab_size": 100, "word_embed_proj_dim": 48}),
}  # fmt: skip
TOKENS = torch.randint(3, 100, (2, 24), generator=torch.Generator().manual_seed(0))


def model_of(name):
    torch.manual_seed(0)
    kind, shape = _MODELS[name]
    model = getattr(transformers, kind)(getattr(transformers, f"{name}Config")(**shape)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:  # gains are 1 and biases 0 in a new model
                parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def rotate(model, batch=TOKENS, **options):
    return Rotation(**options)(model, TorchFrontend(), batch)


@pytest.mark.parametrize("name", _MODELS)
def test_the_rotated_model_computes_the_same_and_can_be_taken_back(name):
    model = model_of(name)
    before, others = copy.deepcopy(model.state_dict()), TOKENS.flip(1)
    tied = model.config.tie_word_embeddings
    with torch.no_grad():
        expected = model(others).logits
        applied = rotate(model)
        # The weights are rounded to float32 once more.
        torch.testing.assert_close(model(others).logits, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    mean = ", its mean kept" if name in ("GPT2", "GPTNeoX", "OPT") else ""
    assert applied.sentences[0].startswith(f"rotation: the residual stream of 48 channels was rotated{mean}: 5 norms")
    assert applied.sentences[1] == "rotation: values inside the heads of 2 layers were rotated"
    weights = [key for key, value in model.state_dict().items() if value.ndim == 2]
    still = [key for key in weights if torch.equal(before[key], model.state_dict()[key])]
    assert still == []
    assert not model.config.tie_word_embeddings
    applied.restore()
    assert model.config.tie_word_embeddings == tied
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    assert (embedding.weight is head.weight) == tied


def test_values_rotate_in_their_heads_alone():
    model = model_of("Llama")
    before = model.model.layers[0].self_attn.v_proj.weight.detach().clone()
    fold = model.model.layers[0].input_layernorm.weight.detach().double()
    rotate(model)
    stream = torch.from_numpy(orthogonal(48, 0))
    after = model.model.layers[0].self_attn.v_proj.weight.detach().double() @ stream.T / fold
    heads = torch.block_diag(*[torch.from_numpy(orthogonal(12, 0))] * 2)
    # One rounding of float32 of each of up to 48 summands, beside weights of about 0.02.
    torch.testing.assert_close(after, heads.T @ before.double(), rtol=0, atol=1e-6)


def test_heads_can_be_left_out():
    model = model_of("Llama")
    assert len(rotate(model, heads=False).sentences) == 1
    assert len(rotate(model_of("Llama")).sentences) == 2


@pytest.mark.parametrize("width", [1, 2, 12, 64, 90, 576])
def test_matrices_of_every_width_are_orthogonal_and_spread_a_channel(width):
    for matrix in (orthogonal(width, 3), mean_keeping(width, 3)):
        np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-12)
    np.testing.assert_allclose(mean_keeping(width, 3).sum(axis=1), 1.0, atol=1e-12)
    if width == 64:  # a power of two: every entry has the same size
        np.testing.assert_allclose(np.abs(orthogonal(64, 3)), 1 / 8, atol=1e-12)
    assert not np.array_equal(orthogonal(width, 3), orthogonal(width, 4)) or width == 1


def outlying():
    """A Llama with a few channels of its residual stream far larger than the others, as trained ones have."""
    model = model_of("Llama")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("embed_tokens.weight"):
                parameter[:, :2] *= 20.0
            elif name.endswith(("q_proj.weight", "gate_proj.weight", "up_proj.weight", "v_proj.weight")):
                parameter[:, 5] *= 20.0
    return model


def test_weights_with_outliers_lose_less_when_they_are_rotated():
    rules = [fb.keep(kind="head"), fb.keep(kind="embedding"), fb.Rule(kind="linear", weight="int4 channel")]
    reports = [
        fb.quantize(outlying(), fb.Recipe(rules, transforms=own), calibration=[TOKENS], evaluation=[TOKENS]).report
        for own in ([], ["rotation"])
    ]
    assert reports[1].remarks[0].startswith("rotation: the residual stream of 48 channels was rotated")
    assert reports[1].after.kl_divergence < 0.5 * reports[0].after.kl_divergence


def test_a_rotated_model_without_tie_is_saved_and_loaded(tmp_path):
    model = model_of("Llama")
    model.save_pretrained(tmp_path / "float")
    recipe = fb.Recipe([fb.keep(kind="head"), fb.Rule(kind="linear", weight="int8 channel")], transforms=["rotation"])
    result = fb.quantize(tmp_path / "float", recipe, to="compressed-tensors", calibration=[TOKENS])
    path = result.save(tmp_path / "out", to="compressed-tensors")
    read = fb.load(path).model
    with torch.no_grad():
        # The same kernels on the same codes, floats rounded when the model was quantized.
        assert torch.equal(read(TOKENS).logits, result.model(TOKENS).logits)
    again = transformers.AutoConfig.from_pretrained(path)
    assert again.tie_word_embeddings is False


class NoSum(nn.Module):
    """Its blocks multiply the stream."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict({"norm": nn.LayerNorm(16), "one": nn.Linear(16, 16)}) for _ in range(2)
        )

    def forward(self, x):
        for block in self.blocks:
            x = x * (1 + block["one"](block["norm"](x)))
        return x


def test_what_is_no_residual_stream_stays_and_that_is_said():
    torch.manual_seed(0)
    model, x = NoSum().eval(), torch.randn(4, 16)
    before = copy.deepcopy(model.state_dict())
    applied = rotate(model, x)
    assert applied.sentences == (
        "rotation: the residual stream of 16 channels is as it was: not everything that reads and writes it was found",
    )
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert "give some" in rotate(model, None).sentences[0]
    plain = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    assert "no norm feeds linear layers alone" in rotate(plain, torch.randn(2, 4)).sentences[0]


def test_options_are_checked():
    assert parse_transform({"name": "rotation", "heads": False, "seed": 5}) == Rotation(heads=False, seed=5)
    with pytest.raises(RecipeError, match="seed -1 is no number from 0 on"):
        Rotation(seed=-1)
    with pytest.raises(RecipeError, match="heads = 1 is not true or false"):
        Rotation(heads=1)
