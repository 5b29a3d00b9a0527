"""The two forms of a product inside attention: copies and states of the rounded one, and nothing left of it after."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import fewbit as fb
from fewbit.errors import NonFiniteError, PlanError
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_input_scheme


def draw(seed):
    return torch.randn(2, 7, 32, generator=torch.Generator().manual_seed(seed))


X = draw(0)


class Attention(nn.Module):
    """One head; `core` makes the products of queries, keys and values (batch, tokens, 32)."""

    def __init__(self, core):
        super().__init__()
        torch.manual_seed(0)
        self.project, self.core = nn.Linear(32, 96), core

    def forward(self, x):
        return self.core(*self.project(x).chunk(3, -1))


def matmul(q, k, v):
    return (q @ k.mT).softmax(-1) @ v


def causal(q, k, v):
    return functional.scaled_dot_product_attention(q, k, v, is_causal=True)


def quantized(module, text, data=(X,)):
    recipe = fb.Recipe([fb.Rule(kind="attention", input=text)])
    return fb.quantize(module.eval(), recipe, calibration=list(data)).model


@pytest.mark.parametrize("text", ["int8", "int8 static", "e4m3 static"])
@torch.no_grad()
def test_copies_pickles_and_states_are_the_same_model(text):
    module = quantized(nn.Sequential(Attention(causal)), text)
    expected = module(X)
    fresh = quantized(nn.Sequential(Attention(causal)), text, [draw(9)])
    if "static" in text:
        assert not torch.equal(fresh(X), expected)
    fresh.load_state_dict(module.state_dict())
    stored = io.BytesIO()
    torch.save(module, stored)
    stored.seek(0)
    copied = copy.deepcopy(module)
    others = [fresh, copied, pickle.loads(pickle.dumps(module)), torch.load(stored, weights_only=False)]
    assert copied[0].forward.module is copied[0]
    for other in others:
        assert torch.equal(other(X), expected)
    copied[0].query_key = None
    assert not torch.equal(copied(X), expected)
    assert torch.equal(module(X), expected)


def test_a_state_dict_names_module_product_and_operand():
    module = quantized(nn.Sequential(Attention(matmul)), "int8 static")
    names = [name for name in module.state_dict() if "scale" in name]
    operands = ("query_key.query", "query_key.key", "probabilities_value.probabilities", "probabilities_value.value")
    assert names == [f"0.{operand}.scale" for operand in operands]
    state = module.state_dict()
    del state["0.query_key.key.zero_point"]
    with pytest.raises(RuntimeError, match=r"Missing key.*0\.query_key\.key\.zero_point"):
        module.load_state_dict(state)


def test_a_model_with_rounded_products_is_not_rounded_again():
    module = quantized(nn.Sequential(Attention(matmul)), "int8")
    with pytest.raises(PlanError, match=r"0\.query_key is rounded already; start from the float model"):
        fb.plan(module, "w8a16")


def test_an_error_inside_leaves_no_mode_behind():
    def fails(q, k, v):
        raise KeyboardInterrupt

    module = quantized(Attention(matmul), "int4")
    module.core = fails
    with pytest.raises(KeyboardInterrupt):
        module(X)
    assert torch.equal(X @ X.mT, torch.bmm(X, X.mT))
    assert not torch.overrides.has_torch_function((X,))


@torch.no_grad()
def test_a_kept_attention_inside_of_a_rounded_one_stays_float():
    class Outer(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Attention(matmul)

        def forward(self, x):
            x = self.inner(x)
            return (x @ x.mT).softmax(-1) @ x

    rules = [fb.keep("inner.*"), fb.Rule(kind="attention", input="int4")]
    module = fb.quantize(Outer().eval(), fb.Recipe(rules), calibration=[X]).model
    x = Outer().inner(X)

    def rounded(rows):
        return quantize(rows, parse_input_scheme("int4")).dequantize()

    assert torch.equal(module(X), rounded((rounded(x) @ rounded(x).mT).softmax(-1)) @ rounded(x))


def test_operands_that_are_not_numbers_are_named():
    def broken(q, k, v):
        return (q @ k.mT).softmax(-1) @ (v / 0)

    with pytest.raises(NonFiniteError, match=r"probabilities_value\.value: its inputs hold NaN or infinity"):
        quantized(Attention(broken), "int8 static")
