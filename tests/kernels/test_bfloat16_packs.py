"""The bfloat16 kernels compute what the schemes say, as exactly as bfloat16 can, and only where they are the faster."""

from dataclasses import replace

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.kernels import Request, refusals, select, why_not
from fewbit.kernels.bfloat16_packs import Int4Pack, Int8Pack
from fewbit.kernels.dequantize import Dequantize
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

SCHEMES = {"int8 channel": Int8Pack, "int5 channel": Int8Pack, "int4 g32": Int4Pack, "int4 g64": Int4Pack}


def scheme(text):
    return replace(parse_scheme(text), scale_type="bfloat16")


def request(text, **changes):
    given = Request(weight=scheme(text), input=None, device="cpu", dtype="bfloat16", shape=(48, 128))
    return replace(given, **changes)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("rows", [(1,), (4,), (2, 2), (5,), (70,)])
@pytest.mark.parametrize("text", SCHEMES)
def test_the_product_is_the_exact_one_rounded(text, rows):
    kernel = SCHEMES[text]()
    weight, x, bias = quantize(draw(48, 128), scheme(text)), draw(*rows, 128, seed=1).bfloat16(), draw(48).bfloat16()
    assert select(request(text)) == kernel
    found = kernel.apply(x, kernel.prepare(weight), bias)
    assert found.dtype == torch.bfloat16
    assert found.shape == (*rows, 48)
    exact = x.double() @ weight.dequantize().double().T + bias.double()
    # bfloat16 has 8 bits: a rounding of the sum, one of the bias added, and many rows round the weight too.
    error = (found.double() - exact).square().mean() / exact.square().mean()
    assert error < 2.0**-16


@pytest.mark.parametrize(("text", "shape", "message"), [
    # torch 2.13 ends the process for 24 columns of int8 on AVX512, and refuses 33 rows of int4.
    *(("int8 channel", (48, width), f"a multiple of 32 wide, not {width}") for width in (8, 24, 40, 1000, 100)),
    ("int4 g64", (33, 128), "multiples of 16 rows and 2 columns, not 33 x 128"),
    ("int4 g64", (48, 96), "whole groups and multiples of 16 rows and 2 columns, not 48 x 96"),
    ("int4 g64", (48, 32), "whole groups and multiples of 16 rows and 2 columns, not 48 x 32"),
])  # fmt: skip
def test_shapes_that_the_operators_do_not_take_are_refused(text, shape, message):
    asked = request(text, shape=shape)
    assert message in SCHEMES[text]().refusal(asked)
    assert select(asked) == Dequantize()


@pytest.mark.parametrize(
    ("text", "shape"), [("int8 channel", (48, 96)), ("int4 g64", (48, 64)), ("int4 g32", (16, 32))]
)
def test_the_smallest_shapes_that_they_take_are_computed(text, shape):
    kernel, weight = SCHEMES[text](), quantize(draw(*shape), scheme(text))
    assert select(request(text, shape=shape)) == kernel
    x = draw(1, shape[1], seed=1).bfloat16()
    found = kernel.apply(x, kernel.prepare(weight), None)
    exact = x.double() @ weight.dequantize().double().T
    assert (found.double() - exact).square().mean() < 2.0**-16 * exact.square().mean()


@pytest.mark.parametrize("text", ["int8 channel", "int4 g64"])
def test_no_rows_are_no_special_case_and_gradients_go_through(text):
    kernel, weight = SCHEMES[text](), quantize(draw(48, 128), scheme(text))
    prepared = kernel.prepare(weight)
    assert kernel.apply(draw(0, 128).bfloat16(), prepared, None).shape == (0, 48)
    x = draw(2, 128).bfloat16().requires_grad_()
    kernel.apply(x, prepared, None).sum().backward()
    expected = weight.dequantize().bfloat16().sum(0)
    torch.testing.assert_close(x.grad, expected.expand(2, -1), rtol=0.05, atol=0.05)  # 48 sums in bfloat16


@pytest.mark.parametrize(("text", "changes", "message"), [
    ("int8 channel", {"dtype": "float32"}, "kernels for products of weights alone take bfloat16 on cpu, not float32"),
    ("int8 channel", {"weight": parse_scheme("int8 channel")}, "quantize with dtype='bfloat16'"),
    ("int8 channel", {"weight": scheme("int8 channel asym")}, "symmetric integers of 8 bits by channel"),
    ("int4 g64", {"weight": scheme("int4 g16")}, "symmetric int4 in groups of 32, 64, 128, 256, not int4 g16"),
    ("int4 g64", {"weight": scheme("int4 g64 asym")}, "symmetric int4 in groups"),
])  # fmt: skip
def test_what_they_cannot_compute_is_refused_with_the_reason(text, changes, message):
    kernel = SCHEMES[text]()
    asked = request(text, **changes)
    assert message in why_not(kernel, asked)
    assert select(asked) == Dequantize()
    assert message in refusals(asked)[kernel.name]


@pytest.mark.parametrize("text", ["int8 channel", "int4 g64"])
def test_another_device_is_none_of_their_business(text):
    asked = request(text, device="meta")
    assert "it is for products of weights alone on cpu" in why_not(SCHEMES[text](), asked)
    assert refusals(asked) == {}


@pytest.mark.parametrize("text", ["int8 channel", "int4 g64"])
def test_a_model_in_bfloat16_decodes_on_them(text):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 64), nn.GELU(), nn.Linear(64, 16)).bfloat16()
    result = fb.quantize(net, fb.Recipe([fb.Rule(".*", weight=text)]), dtype="bfloat16")
    x = draw(1, 128).bfloat16()
    with torch.no_grad():
        found = result.model(x)
        names = {select(layer.request(torch.bfloat16)).name for layer in (result.model[0], result.model[2])}
        reference = nn.functional.gelu(x.float() @ result.model[0].weight.float().T + result.model[0].bias.float())
        reference = reference @ result.model[2].weight.float().T + result.model[2].bias.float()
    assert names == {SCHEMES[text]().name}
    assert result.report.layers[0].kernel == f"{SCHEMES[text]().name}, faster for up to 4 rows"
    torch.testing.assert_close(found.float(), reference, rtol=0.02, atol=0.02)  # three roundings to 8 bits
