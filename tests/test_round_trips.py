"""Random models through every format and back: schemes, codes and dequantized numbers are equal to the bit."""

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fewbit as fb
from fewbit.checkpoints.gguf.blocks import BLOCKS as GGUF_KINDS
from fewbit.formats import FORMATS
from fewbit.qtensor import QTensor
from fewbit.schemes.block_formats import BLOCK_FORMATS
from fewbit.schemes.gguf import GGUF_FORMATS, scheme_of

pytestmark = pytest.mark.usefixtures("one_thread")

DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])
GROUPS = st.sampled_from(["g16", "g32", "g64"])
PLACES = st.one_of(st.just("channel"), GROUPS)
BLOCKS = ("nvfp4", "mxfp4", "mxfp6", "mxfp8", "fp16", "bf16")


def integers(bits, places):
    """Draw integers about a zero point or not; of one bit there are none without."""
    return st.builds(
        lambda n, place, sym: f"int{n} {place}{'' if sym and n > 1 else ' asym'}", bits, places, st.booleans()
    )


COMPRESSED = st.one_of(
    integers(st.integers(1, 8), st.one_of(st.just("tensor"), PLACES)),
    st.sampled_from(["e4m3 tensor", "e4m3", "e4m3 g32", *BLOCKS]),
)
INPUTS = st.sampled_from([None, None, "int8", "e4m3", "int8 static", "int4 asym static", "mxfp8", "nvfp4 static"])
GPTQ = integers(st.sampled_from([2, 3, 4, 8]), PLACES)
AWQ = integers(st.just(4), GROUPS)


class Net(nn.Module):
    """Linear layers of any widths behind each other, with biases or not, and a norm that stays float."""

    def __init__(self, widths, biases, seed):
        super().__init__()
        torch.manual_seed(seed)
        pairs = zip(widths, widths[1:], biases, strict=False)
        self.layers = nn.ModuleList([nn.Linear(own, out, bias=bias) for own, out, bias in pairs])
        self.norm = nn.LayerNorm(widths[-1])
        for layer in self.layers:  # no row is so small that float16 would hold its scale as a subnormal
            layer.weight.data = torch.randn_like(layer.weight) * torch.exp(torch.randn(layer.out_features, 1) / 2)

    def forward(self, x):
        for layer in self.layers:
            x = layer(x)
        return self.norm(x)


def test_the_comparison_sees_a_single_code_and_a_single_scale():
    weight = fb.quantize(nn.Sequential(nn.Linear(64, 8)), fb.Recipe([fb.Rule("0", weight="nvfp4")])).model[0].qtensor
    assert_same(weight, weight.map(torch.clone))
    for place in range(3):
        other = weight.map(torch.clone)
        changed = numbers(other)[place]
        changed.view(-1)[0] = changed.view(-1)[0] * 2 + 1
        with pytest.raises(AssertionError):
            assert_same(weight, other)


#: Widths that groups of 64 and the words of every packing divide, biases, and a seed.
NETS = st.integers(1, 3).flatmap(
    lambda count: st.tuples(
        st.lists(st.sampled_from([64, 128, 192]), min_size=count + 1, max_size=count + 1),
        st.lists(st.booleans(), min_size=count, max_size=count),
        st.integers(0, 999),
    )
)


def numbers(value):
    """Return every array of a QTensor, those of its scale too."""
    if not isinstance(value, QTensor):
        return [] if value is None else [value]
    parts = (value.codes, value.scale, value.zero_point, value.minimum, value.codebook)
    return [array for part in parts for array in numbers(part)]


def assert_same(found, expected):
    """Compare schemes, codes, scales, zero points, minima, and what they stand for."""
    assert found.scheme == expected.scheme
    pairs = list(zip(numbers(found), numbers(expected), strict=True))
    assert all(ours.dtype == theirs.dtype and torch.equal(ours, theirs) for ours, theirs in pairs)
    assert torch.equal(found.dequantize(), expected.dequantize())


def assert_models_are_the_same(found, expected, names):
    """Compare the quantized layers `names`, and every float number that is left."""
    for name in names:
        assert_same(found.get_submodule(name).qtensor, expected.get_submodule(name).qtensor)
    ours, theirs = (dict(own.named_parameters()) for own in (found, expected))
    assert ours.keys() == theirs.keys()
    assert [name for name in ours if not torch.equal(ours[name].float(), theirs[name].float())] == []


def through(net, rules, to, dtype):
    """Quantize, write, read into another net of these sizes, and compare."""
    widths, biases, seed = net
    model, other = Net(widths, biases, seed), Net(widths, biases, seed + 1)
    seen = [torch.randn(8, widths[0])] if any(rule.input for rule in rules) else None
    result = fb.quantize(model, fb.Recipe(rules), to=to, dtype=dtype, calibration=seen)
    names = [quantized.layer.name for quantized in result.plan.quantized]
    with tempfile.TemporaryDirectory() as root:
        loaded = fb.load(result.save(Path(root) / "m"), into=other)
    assert len(names) == len(biases)
    assert_models_are_the_same(loaded.model, result.model, names)
    assert [row.becomes for row in loaded.plan.rows] == [row.becomes for row in result.plan.rows]


@settings(max_examples=24)
@given(net=NETS, weights=st.lists(COMPRESSED, min_size=3, max_size=3), given_inputs=INPUTS, dtype=DTYPES)
def test_a_net_comes_back_out_of_compressed_tensors(net, weights, given_inputs, dtype):
    # A cast has no scales beside its weight, and its input is cast or float.
    inputs = [None if weight in ("fp16", "bf16") else given_inputs for weight in weights]
    rules = [
        fb.Rule(f"layers.{n}", weight=own, input=into)
        for n, (own, into) in enumerate(zip(weights, inputs, strict=True))
    ]
    through(net, rules[: len(net[1])], "compressed-tensors", dtype)


@settings(max_examples=12)
@given(net=NETS, weights=st.lists(GPTQ, min_size=3, max_size=3), dtype=DTYPES)
def test_a_net_comes_back_out_of_gptq(net, weights, dtype):
    rules = [fb.Rule(f"layers.{n}", weight=own) for n, own in enumerate(weights[: len(net[1])])]
    through(net, rules, "gptq", dtype)


@settings(max_examples=8)
@given(net=NETS, weight=AWQ, dtype=DTYPES)
def test_a_net_comes_back_out_of_awq(net, weight, dtype):
    through(net, [fb.Rule(kind="linear", weight=weight)], "awq", dtype)


# Language models, which are built from what is in the folder or file alone.


@st.composite
def llamas(draw, unit=None):
    """Draw the sizes of a Llama whose widths are multiples of `unit`, or of 32, with tied embeddings or not."""
    heads = draw(st.sampled_from([1, 2, 4]))
    return {
        "hidden_size": (unit or 32) * draw(st.integers(1, 2)),
        "intermediate_size": (unit or 32) * draw(st.integers(1, 3)),
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([own for own in (1, 2, 4) if heads % own == 0])),
        "head_dim": unit or draw(st.sampled_from([32, 64])),
        "num_hidden_layers": draw(st.integers(1, 2)),
        "vocab_size": 8 * draw(st.integers(2, 9)),
        "tie_word_embeddings": draw(st.sampled_from([True, False])),
        "attention_bias": draw(st.booleans()),
    }


def model_through(model, rules, to, dtype):
    """Quantize a language model, write it, build it from what was written, and compare."""
    result = fb.quantize(model, fb.Recipe(rules), to=to, dtype=dtype)
    names = [quantized.layer.name for quantized in result.plan.quantized]
    with tempfile.TemporaryDirectory() as root:
        loaded = fb.load(result.save(Path(root) / ("m.gguf" if to == "gguf" else "m")))
    assert {row.layer.name for row in loaded.plan.rows if row.scheme} == set(names)
    assert_models_are_the_same(loaded.model, result.model, names)
    tied = [own.get_output_embeddings().weight is own.get_input_embeddings().weight
            for own in (loaded.model, result.model) if hasattr(own.get_output_embeddings(), "weight")]  # fmt: skip
    assert len(set(tied)) <= 1
    tokens = torch.arange(8)[None]
    for own in (loaded.model, result.model):
        own.set_attn_implementation("eager")
    with torch.no_grad():
        assert torch.equal(loaded.model(tokens).logits, result.model.float()(tokens).logits)


@pytest.mark.parametrize("to", ["compressed-tensors", "gptq", "awq"])
@settings(max_examples=5)
@given(sizes=llamas(), bits=st.sampled_from([4, 8]), group=st.sampled_from(["g16", "g32"]), asymmetric=st.booleans())
def test_a_llama_comes_back_out_of_a_folder(language_model, to, sizes, bits, group, asymmetric):
    weight = f"int{4 if to == 'awq' else bits} {group}{' asym' if asymmetric else ''}"
    model = language_model("llama", **sizes)
    model_through(model, [fb.Rule(kind="linear", weight=weight), fb.Rule(kind="head", keep=True)], to, "float32")


@pytest.mark.parametrize("kind", GGUF_KINDS)
@settings(max_examples=2)
@given(data=st.data(), embedded=st.sampled_from([True, False]))
def test_a_llama_comes_back_out_of_gguf(language_model, kind, data, embedded):
    sizes = data.draw(llamas(GGUF_KINDS[kind][0]))
    rules = [fb.Rule(kind="linear", weight=scheme_of(kind))]
    # Of a tied model the head is the embedding, and NVFP4 has a scale beside that no embedding has.
    other = scheme_of("Q8_0" if kind == "NVFP4" else kind) if embedded else None
    rules += [
        fb.Rule(kind=own, weight=other) if other else fb.Rule(kind=own, keep=True) for own in ("embedding", "head")
    ]
    model_through(language_model("llama", **sizes), rules, "gguf", "float32")


# The state_dict, which holds every scheme.

PLAIN = [f"{name} {place}" for name in FORMATS for place in ("tensor", "channel", "g16")]
SCHEMES = [*(own.replace("int1 ", "int1 asym ") for own in PLAIN), *BLOCK_FORMATS, *GGUF_FORMATS]


@settings(max_examples=60)
@given(text=st.sampled_from(SCHEMES), out=st.sampled_from([16, 24, 48]), seed=st.integers(0, 999))
def test_a_state_dict_comes_back_under_every_scheme(text, out, seed):
    nets = []
    for own in (seed, seed + 1):
        torch.manual_seed(own)
        nets.append(fb.quantize(nn.Sequential(nn.Linear(256, out)), fb.Recipe([fb.Rule("0", weight=text)])).model)
    first, second = nets
    assert not torch.equal(first[0].qtensor.dequantize(), second[0].qtensor.dequantize())
    with tempfile.TemporaryDirectory() as root:
        torch.save(first.state_dict(), Path(root) / "state.pt")
        second.load_state_dict(torch.load(Path(root) / "state.pt", weights_only=True))
    assert_same(second[0].qtensor, first[0].qtensor)
    assert torch.equal(second[0].bias, first[0].bias)
