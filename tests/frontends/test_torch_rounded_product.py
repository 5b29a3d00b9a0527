"""Rounded products compute what their schemes say, held against attention that is written out by hand."""

import copy
import math

import pytest
import torch
import transformers
from torch import nn
from torch.nn import functional

import fewbit as fb
from fewbit.activation import Activation
from fewbit.catalogue import lookup
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_input_scheme
from fewbit.statistics import STATISTICS

DYNAMIC = ["int8", "int8 sym", "int8 tensor", "int8 g4", "int4", "e4m3", "e4m3 tensor", "mxfp8"]
STATIC = ["int8 static", "int8 static sym", "e4m3 static", "int8 static percentile"]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


X = draw(2, 7, 32)
MASK = torch.ones(7, 7, dtype=torch.bool).tril()


class Attention(nn.Module):
    """Four heads of eight numbers; `core` makes the products of queries, keys and values (batch, heads, tokens, 8)."""

    def __init__(self, core):
        super().__init__()
        torch.manual_seed(0)
        self.project, self.out, self.core = nn.Linear(32, 96), nn.Linear(32, 32), core

    def states(self, x):
        return [part.unflatten(-1, (4, 8)).transpose(1, 2) for part in self.project(x).chunk(3, -1)]

    def forward(self, x):
        return self.out(self.core(*self.states(x)).transpose(1, 2).flatten(2))


def matmul(q, k, v):
    return (q @ k.transpose(-2, -1) * 8**-0.5).masked_fill(~MASK, -math.inf).softmax(-1) @ v


def bmm(q, k, v):
    q, k, v = (own.flatten(0, 1) for own in (q, k, v))
    scores = torch.bmm(q, k.transpose(1, 2)) * 8**-0.5
    return torch.bmm(scores.masked_fill(~MASK, -math.inf).softmax(-1), v).unflatten(0, (-1, 4))


def baddbmm(q, k, v):
    q, k, v = (own.flatten(0, 1) for own in (q, k, v))
    added = torch.zeros(7, 7).masked_fill(~MASK, -math.inf).expand(len(q), -1, -1)
    return torch.bmm(torch.baddbmm(added, q, k.mT, alpha=8**-0.5).softmax(-1), v).unflatten(0, (-1, 4))


def einsum(q, k, v):
    q, k, v = (own.transpose(1, 2) for own in (q, k, v))
    scores = torch.einsum("bqhd,bkhd->bhqk", q, k) * 8**-0.5
    return torch.einsum("bhqk,bkhd->bhqd", scores.masked_fill(~MASK, -math.inf).softmax(-1), v)


def columns(q, k, v):
    scores = (k @ q.mT * 8**-0.5).masked_fill(~MASK.mT, -math.inf)
    return (v.mT @ scores.softmax(-2)).mT


def causal(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def masked(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v, MASK, scale=8**-0.5)


def added(q, k, v):
    mask = torch.zeros(7, 7).masked_fill(~MASK, -math.inf)
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)


CORES = [matmul, bmm, baddbmm, einsum, columns, causal, masked, added]


def recipe(text):
    return fb.Recipe([fb.Rule(kind="attention", input=text)])


def quantized(module, text, data=None):
    return fb.quantize(module.eval(), recipe(text), calibration=[X, 2 * X] if data is None else data)


def by_hand(q, k, v, text):
    """Causal attention of rounded operands; static ranges are those of the given operands of `X` and `2 * X`."""
    scheme = parse_input_scheme(text)

    def rounded(rows):
        return quantize(rows, scheme).dequantize()

    scores = (rounded(q) @ rounded(k).transpose(-2, -1)) * 8**-0.5
    return rounded(scores.masked_fill(~MASK, -math.inf).softmax(-1)) @ rounded(v)


@pytest.mark.parametrize("text", DYNAMIC)
@torch.no_grad()
def test_dynamic_operands_are_those_of_quantize_row_by_row(text):
    module = quantized(Attention(matmul), text).model
    expected = by_hand(*module.states(X), text)
    assert torch.equal(module.core(*module.states(X)), matmul(*module.states(X)))  # outside of the module nothing is
    assert torch.equal(module(X), module.out(expected.transpose(1, 2).flatten(2)))
    assert not torch.equal(module(X), Attention(matmul)(X))


@torch.no_grad()
def test_symmetric_int8_is_what_a_few_lines_of_arithmetic_say():
    module = quantized(Attention(causal), "int8 sym").model

    def rounded(rows):
        scale = rows.abs().amax(-1, keepdim=True) * torch.tensor(2 / 255, dtype=torch.float32)
        scale = torch.where(scale == 0, 1.0, scale)
        return (rows * (1 / scale)).round().clamp(-128, 127) * scale

    q, k, v = (rounded(own) for own in module.states(X))
    p = rounded((q @ k.mT / math.sqrt(8)).masked_fill(~MASK, -math.inf).softmax(-1))
    # The scale is multiplied here and divided there: the last place of a float32.
    torch.testing.assert_close(module(X), module.out((p @ v).transpose(1, 2).flatten(2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", ["int8", "int8 sym", "e4m3", "int8 static"])
@pytest.mark.parametrize("core", CORES, ids=lambda core: core.__name__)
@torch.no_grad()
def test_every_spelling_of_attention_is_rounded_alike(core, text):
    expected = quantized(Attention(matmul), text).model(X)
    float_output = Attention(matmul)(X)
    step = float((float_output - expected).square().mean())
    # Sums in another order move a code now and then: far less than the rounding itself.
    found = quantized(Attention(core), text).model(X)
    assert float((found - expected).square().mean()) < 1e-2 * step
    assert step > 0


@pytest.mark.parametrize("text", STATIC)
@torch.no_grad()
def test_static_ranges_are_those_that_calibration_saw(text):
    module = quantized(Attention(matmul), text).model
    plain, scheme = Attention(matmul), parse_input_scheme(text)
    seen = {name: [] for name in ("query", "key", "probabilities", "value")}
    for batch in (X, 2 * X):
        q, k, v = plain.states(batch)
        p = (q @ k.mT * 8**-0.5).masked_fill(~MASK, -math.inf).softmax(-1)
        for name, states in zip(seen, (q, k, p, v), strict=True):
            seen[name].append(states.reshape(-1, 1))
    expected = {}
    for name, batches in seen.items():
        statistic = lookup(STATISTICS, scheme.ranging.statistic, what="statistic").init(1, batches[0])
        for rows in batches:
            statistic.update(rows)
        expected[name] = Activation.calibrated(scheme, statistic).like(X)
    q, k, v = module.states(3 * X)  # also beyond what was seen, where it clips
    scores = expected["query"].rounded(q) @ expected["key"].rounded(k).mT * 8**-0.5
    p = expected["probabilities"].rounded(scores.masked_fill(~MASK, -math.inf).softmax(-1))
    output = (p @ expected["value"].rounded(v)).transpose(1, 2).flatten(2)
    assert torch.equal(module(3 * X), module.out(output))


@torch.no_grad()
def test_asymmetric_integers_use_all_their_levels_for_probabilities():
    module = quantized(Attention(matmul), "int8 static").model
    rounding = module.probabilities_value.probabilities
    assert float(rounding.activation.zero_point) == -128
    assert float(rounding.activation.scale) == pytest.approx(1 / 255)  # the first token of a causal row has all of it


def sqnr(expected, found):
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum()))


@torch.no_grad()
def test_more_bits_and_ranges_of_ones_own_leave_less_error():
    expected = Attention(matmul)(X)
    found = {
        text: sqnr(expected, quantized(Attention(matmul), text).model(X))
        for text in ("int8", "int6", "int4", "int8 static", "int4 static", "int8 sym")
    }
    assert found["int8"] > found["int6"] + 8 > found["int4"] + 16  # 6 dB a bit
    assert found["int8"] > found["int8 static"] > found["int4 static"] + 12
    assert found["int8"] > found["int8 sym"]  # half of the codes of probabilities lie below 0


@torch.no_grad()
def test_queries_may_share_keys_and_a_row_that_sees_nothing_is_zero():
    class Shared(nn.Module):
        def __init__(self, mask):
            super().__init__()
            self.weight, self.mask = nn.Linear(1, 1), mask

        def forward(self, q, k, v):
            return functional.scaled_dot_product_attention(q, k, v, self.mask, enable_gqa=True, scale=0.3)

    blind = MASK.clone()
    blind[3] = False
    q, k, v = draw(2, 4, 7, 8), draw(2, 2, 7, 8, seed=1), draw(2, 2, 7, 5, seed=2)
    expected = Shared(blind)(q, k, v)
    # Symmetric int16 without ranges that clip: what is left is float noise, so that the form itself is compared.
    module = quantized(Shared(blind), "int16", [(q, k, v)]).model
    found = module(q, k, v)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    assert not found[:, :, 3].any()
    repeated = [own.repeat_interleave(2, dim=1) for own in (k, v)]
    eight = quantized(Shared(None), "int8", [(q, k, v)]).model
    assert torch.equal(eight(q, k, v), eight(q, *repeated))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")  # what the float encoder makes of padding
@pytest.mark.parametrize("need_weights", [True, False])
@pytest.mark.parametrize("text", ["int4", "int4 static"])
@torch.no_grad()
def test_multihead_attention_and_the_encoder_around_it_do_not_go_around_the_rounding(need_weights, text):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4, batch_first=True).eval()
    plain = copy.deepcopy(attention)
    batch = {"query": X, "key": X, "value": X, "need_weights": need_weights}
    module = quantized(attention, text, [batch]).model
    scheme = parse_input_scheme(text)
    q, k, v = (
        part.unflatten(-1, (4, 8)).transpose(1, 2)
        for part in functional.linear(X, plain.in_proj_weight, plain.in_proj_bias).chunk(3, -1)
    )
    if need_weights:
        q = q * 8**-0.5

    def rounded(rows):
        return quantize(rows, scheme).dequantize()

    p = (rounded(q) @ rounded(k).mT * (1 if need_weights else 8**-0.5)).softmax(-1)
    if text == "int4":
        expected = plain.out_proj((rounded(p) @ rounded(v)).transpose(1, 2).flatten(2))
        # Products of other shapes add in another order; a step of 4 bits would show at 1e-2.
        torch.testing.assert_close(module(**batch)[0], expected, rtol=1e-4, atol=1e-5)
    assert sqnr(plain(**batch)[0], module(**batch)[0]) < 30

    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1).eval()
    padding = torch.zeros(2, 7, dtype=torch.bool)
    padding[1, 5:] = True
    before = encoder(X, src_key_padding_mask=padding)
    data = {"src": X, "src_key_padding_mask": padding}
    after = quantized(encoder, text, [data]).model(**data)
    assert 10 < sqnr(before[~padding], after[~padding]) < 45
    assert torch.equal(after, encoder.layers[0](X, src_key_padding_mask=padding))


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ["Llama", "Bert", "GPT2", "ViT"])
@torch.no_grad()
def test_transformers_models_are_rounded_where_their_attention_is_computed(tiny, name, attention):
    model, batches = tiny(name)
    model.set_attn_implementation(attention)
    plain = copy.deepcopy(model)
    result = quantized(model, "int4", batches)
    assert len(result.report.quantized) == 6
    makers = {own.layer.name.rpartition(".")[0] for own in result.plan.rounded_products}
    seen = []
    for maker in makers:

        def keep(module, args, kwargs, output, maker=maker):
            with torch.no_grad():
                exact = plain.get_submodule(maker)(*args, **kwargs)[0]
            seen.append(sqnr(exact, output[0]))

        result.model.get_submodule(maker).register_forward_hook(keep, with_kwargs=True)
    fb.frontends.torch.calls.run_batch(result.model, batches[0])
    assert len(seen) == 3
    assert all(10 < own < 35 for own in seen), seen  # dB: 4 bits leave about 20 of each operand


@torch.no_grad()
def test_both_implementations_of_transformers_give_the_same_rounded_model(tiny):
    outputs = []
    for attention in ("eager", "sdpa"):
        model, batches = tiny("GPT2")
        model.set_attn_implementation(attention)
        outputs.append(quantized(model, "int8", batches).model(batches[0]).logits)
    float_model, batches = tiny("GPT2")
    between = sqnr(outputs[0], outputs[1])
    assert between > sqnr(float_model(batches[0]).logits, outputs[0]) + 20  # a code flips here and there


@torch.no_grad()
def test_a_token_does_not_depend_on_those_after_it(tiny):
    model, _ = tiny("GPT2")
    tokens = torch.randint(3, 300, (1, 12), generator=torch.Generator().manual_seed(3))
    rounded = quantized(model, "int6", [tokens]).model
    whole = rounded(tokens).logits
    cache = transformers.DynamicCache()
    parts = [rounded(tokens[:, i : i + 1], past_key_values=cache).logits for i in range(12)]
    exact = tiny("GPT2")[0](tokens).logits
    assert sqnr(whole, torch.cat(parts, 1)) > sqnr(exact, whole) + 20  # sums in another order, and no more


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.no_grad()
def test_a_model_of_sixteen_bits_keeps_its_type_and_multiplies_in_float32(dtype):
    module = quantized(Attention(matmul).to(dtype), "int8", [X.to(dtype)]).model
    q, k, v = module.states(X.to(dtype))
    scores = (quantize(q.float(), parse_input_scheme("int8")).dequantize() @ quantize(
        k.float(), parse_input_scheme("int8")).dequantize().mT).to(dtype) * 8**-0.5  # fmt: skip
    p = scores.masked_fill(~MASK, -math.inf).softmax(-1)
    rounded = [quantize(own.float(), parse_input_scheme("int8")).dequantize() for own in (p, v)]
    expected = module.out((rounded[0] @ rounded[1]).to(dtype).transpose(1, 2).flatten(2))
    assert module(X.to(dtype)).dtype == dtype
    assert torch.equal(module(X.to(dtype)), expected)


def test_gradients_and_empty_batches_pass():
    module = quantized(Attention(causal), "int8").model
    module(X).sum().backward()
    assert module.project.weight.grad.isfinite().all()
    assert module(X[:0]).shape == (0, 7, 32)
