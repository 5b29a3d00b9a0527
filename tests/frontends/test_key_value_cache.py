"""Key-value caches in few bits: stored as bytes, read as attention is to see them, handled as transformers' own."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from fewbit.errors import CalibrationError, NotYetError, SchemeError
from fewbit.frontends.torch.key_value_cache import key_value_cache
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_input_scheme

DYNAMIC = ["uint8", "uint8 tensor", "uint4", "nf4", "int8", "int8 sym", "e4m3", "int8 tensor", "int4 g8", "int4 sym"]
STATIC = [
    "uint8 channel static",
    "int8 tensor static",
    "int8 channel static",
    "e4m3 tensor static",
    "int8 channel static absmax sym",
]


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, initializer_range=0.2,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="module")
def batches():
    draw = torch.Generator().manual_seed(1)
    return [torch.randint(0, 64, (2, 24), generator=draw) for _ in range(3)]


def states(seed=0):
    return torch.randn(2, 2, 5, 32, generator=torch.Generator().manual_seed(seed))


def appended(cache, *pairs):
    for key, value in pairs:
        found = cache.update(key, value, 0)
    return found


@pytest.mark.parametrize("text", DYNAMIC)
def test_what_attention_sees_is_what_quantize_makes_of_each_append(model, text):
    cache, scheme = key_value_cache(model, text), parse_input_scheme(text)
    pairs = [(states(0), states(1)), (states(2)[..., :1, :], states(3)[..., :1, :])]
    keys, values = appended(cache, *pairs)
    for place, found in enumerate((keys, values)):
        expected = [quantize(pair[place], scheme).dequantize() for pair in pairs]
        assert torch.equal(found, torch.cat(expected, dim=-2))


@pytest.mark.parametrize("text", STATIC)
def test_fixed_ranges_are_those_that_calibration_saw(model, batches, text):
    cache = key_value_cache(model, text, batches)
    float_cache = model(batches[0], use_cache=True).past_key_values
    model(batches[0], past_key_values=cache)
    exact = float_cache.layers[0].keys
    stored = cache.layers[0]
    found = stored._read(stored.keys, stored._roundings[0])
    scheme = parse_input_scheme(text)
    ranges = [model(batch, use_cache=True).past_key_values.layers[0].keys for batch in batches]
    heads = torch.stack([part.movedim(1, -1).reshape(-1, 2) for part in ranges]).reshape(-1, 2)
    low, high = heads.aminmax(dim=0) if "channel" in text else heads.aminmax()
    scale, zero = scheme.grid.parameters(low.clamp(max=0), high.clamp(min=0))
    rounded = scheme.grid.rounded(exact.movedim(1, -1), scale, zero).movedim(-1, 1)
    assert torch.equal(found, rounded)


@pytest.mark.parametrize("method", ["average", "percentile", "mse", "entropy"])
def test_every_range_method_fixes_the_range_of_a_cache(model, batches, method):
    expected = model(batches[0]).logits
    found = model(batches[0], past_key_values=key_value_cache(model, f"int8 tensor static {method}", batches)).logits
    # Of 8 bits and a range that may clip: two layers leave 15 dB at the least, noise in place of codes below 0.
    assert 10 * torch.log10(expected.square().sum() / (expected - found).square().sum()).item() > 15


def test_a_token_takes_its_codes_and_one_scale(model):
    sizes = {}
    for text in ("int8 sym", "int8", "int4 sym", "int8 tensor static sym"):
        cache = key_value_cache(model, text, [torch.zeros(1, 4, dtype=torch.long)])
        appended(cache, (states(), states()))
        sizes[text] = cache.nbytes
    heads = 2 * 2 * 2 * 5  # keys and values of two sequences with two heads and five tokens
    assert sizes == {
        "int8 sym": heads * 36, "int8": heads * 37, "int4 sym": heads * 20, "int8 tensor static sym": heads * 32
    }  # fmt: skip


@pytest.mark.parametrize(("text", "least"), [("int8", 30), ("e4m3", 18), ("int8 channel static", 25)])
def test_scores_stay_close_to_those_of_a_float_cache(model, batches, text, least):
    # Two layers of 8 bits: each bit less would cost 6 dB, and the cache of 4 bits below is the control.
    expected = model(batches[0]).logits
    found = model(batches[0], past_key_values=key_value_cache(model, text, batches)).logits
    coarse = model(batches[0], past_key_values=key_value_cache(model, "int4")).logits
    noise, control = ((expected - scores).square().sum() / expected.square().sum() for scores in (found, coarse))
    assert 10 * torch.log10(1 / noise).item() > least
    assert control > noise


@torch.no_grad()
def test_token_by_token_gives_what_one_forward_gives(model, batches):
    whole = model(batches[0], past_key_values=key_value_cache(model)).logits
    cache = key_value_cache(model)
    parts = [model(batches[0][:, place : place + 1], past_key_values=cache).logits for place in range(24)]
    # Other shapes of matrix products add in another order, which moves a code now and then.
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, rtol=0.02, atol=0.05)


def test_transformers_generates_with_it_greedy_and_by_beams(model):
    start = torch.tensor([[1, 2, 3]])
    for options in ({}, {"num_beams": 3}):
        cache = key_value_cache(model)
        written = model.generate(
            start,
            past_key_values=cache,
            max_new_tokens=6,
            do_sample=False,
            pad_token_id=0,
            eos_token_id=None,
            **options,
        )
        assert written.shape == (1, 9)
        assert cache.get_seq_length() == 8


def test_cropping_resetting_and_copies_are_transformers_own(model):
    cache = key_value_cache(model)
    keys, _ = appended(cache, (states(), states(1)))
    other = copy.deepcopy(cache)
    other.crop(-2)
    assert other.get_seq_length() == 3
    stored = other.layers[0]
    assert torch.equal(stored._read(stored.keys, stored._roundings[0]), keys[..., :3, :])
    cache.reset()
    assert cache.get_seq_length() == 0
    assert torch.equal(appended(cache, (states(), states(1)))[0], keys)


def test_what_is_no_scheme_of_a_cache_is_refused(model):
    with pytest.raises(CalibrationError, match="a cache by 'int8 tensor asym static' needs calibration"):
        key_value_cache(model, "int8 tensor static")
    with pytest.raises(SchemeError, match="a key-value cache has a scale a token, tensor or group, not 'channel'"):
        key_value_cache(model, "int8 channel")
    with pytest.raises(NotYetError, match="a cache by 'int16 token asym', of more than 8 bits"):
        key_value_cache(model, "int16")
    with pytest.raises(NotYetError, match="a cache by 'mxfp8', with a scale that is itself quantized"):
        key_value_cache(model, "mxfp8")
    sliding = copy.deepcopy(model)
    sliding.config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(NotYetError, match="the model has full_attention, sliding_attention"):
        key_value_cache(sliding)
