"""The kernel on `torch._int_mm` computes what the schemes say, and gives the operator what CUDA takes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.activation import Activation
from fewbit.kernels import KERNELS, Request, refusals, select, why_not
from fewbit.kernels.dequantize import Dequantize
from fewbit.kernels.int_mm import IntMm
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_input_scheme, parse_scheme

INPUTS = ["int8", "int8 sym", "int8 narrow sym", "int8 tensor", "int8 tensor sym", "uint8", "uint8 sym", "int5",
          "int8 tensor mse", "int8 static", "int8 static sym", "uint8 static"]  # fmt: skip


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def rounding(text, device):
    scheme = parse_input_scheme(text)
    if not scheme.static:
        return Activation(scheme=scheme)
    zero = None if scheme.symmetric else torch.tensor(17.0, device=device)
    return Activation(scheme=scheme, scale=torch.tensor(0.03, device=device), zero_point=zero)


def both(x, weight, bias, inputs, device, scheme="int8 channel"):
    """The kernel's output, and that of float64 products of the same rounded numbers."""
    x, bias = x.to(device), None if bias is None else bias.to(device)
    activation = rounding(inputs, device)
    quantized = quantize(weight, parse_scheme(scheme)).map(lambda tensor: tensor.to(device))
    kernel = IntMm(device=device)
    found = kernel.apply(x, kernel.prepare(quantized), bias, activation)
    expected = activation.rounded(x).double() @ quantized.dequantize().double().T
    return found, expected if bias is None else expected + bias.double()


def asked(**changes):
    request = Request(weight=parse_scheme("int8 channel"), input=parse_input_scheme("int8"), device="cuda",
                      dtype="bfloat16", shape=(48, 64))  # fmt: skip
    return replace(request, **changes)


@pytest.mark.parametrize("scheme", ["int8 channel", "int8 tensor", "int4 channel"])
@pytest.mark.parametrize("inputs", INPUTS)
def test_outputs_are_those_of_the_reference(inputs, scheme, device):
    found, expected = both(2 * draw(5, 7, 64) + 1, draw(48, 64, seed=1), draw(48, seed=2), inputs, device, scheme)
    assert found.shape == expected.shape == (5, 7, 48)
    # A few float32 roundings of terms as large as the largest output; a code that differed by one would show at 1e-3.
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize("rows", [(), (1,), (16,), (17,), (2, 20)])
def test_any_number_of_rows_is_taken(rows, device):
    found, expected = both(draw(*rows, 64), draw(48, 64, seed=1), None, "int8", device)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def test_nothing_saturates_on_adversarial_data(device):
    x, weight = torch.rand(64, 512) * 0.1 + 0.9, torch.rand(32, 512) * 0.1 + 0.9
    for inputs in ("int8", "int8 sym", "uint8 tensor"):
        found, expected = both(x, weight, None, inputs, device)
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=0)
        exact = (x.double() @ weight.double().T).to(device)
        assert float(10 * torch.log10(exact.square().sum() / (exact - found).square().sum())) > 30


def test_the_type_is_that_of_the_inputs(device):
    for dtype in (torch.bfloat16, torch.float16):
        found, expected = both(draw(20, 64).to(dtype), draw(48, 64, seed=1), draw(48).to(dtype), "int8", device)
        assert found.dtype == dtype
        # Only the output is rounded to the type; a term may cancel another.
        torch.testing.assert_close(found.double(), expected, rtol=2.0**-8, atol=1e-4)


@pytest.mark.parametrize("inputs", ["int8", "int8 static"])
def test_a_row_with_nan_is_nan_and_others_are_not(inputs, device):
    x = draw(3, 16)
    x[1, 3] = float("nan")
    found, _ = both(x, draw(8, 16), None, inputs, device)
    assert torch.isnan(found[1]).all()
    assert not torch.isnan(found[[0, 2]]).any()


def test_the_operator_is_given_what_cuda_takes(monkeypatch, as_on_cuda):
    operator, seen = torch._int_mm, []

    def watched(codes, weight):
        seen.append(as_on_cuda(operator, codes, weight))
        assert len(codes) > 16  # fewer are an error of cuBLAS
        assert weight.stride()[0] == 1  # column by column, the layout that it is fast with
        return operator(codes, weight)

    monkeypatch.setattr(torch, "_int_mm", watched)
    for rows in (1, 16, 17, 40):
        both(draw(rows, 64), draw(48, 64, seed=1), None, "uint8", "cpu")
    assert seen == [(32, 48), (32, 48), (32, 48), (40, 48)]


def test_gradients_reach_the_bias(device):
    kernel, bias = IntMm(device=device), draw(48).to(device).requires_grad_()
    quantized = quantize(draw(48, 64), parse_scheme("int8 channel")).map(lambda tensor: tensor.to(device))
    kernel.apply(draw(4, 64).to(device), kernel.prepare(quantized), bias, rounding("int8", device)).sum().backward()
    assert torch.equal(bias.grad, torch.full_like(bias, 4.0))


@pytest.mark.parametrize(("changes", "message"), [
    ({"shape": (48, 100)}, "its weights are multiples of 8 x 8, not 48 x 100"),
    ({"shape": (33, 64)}, "its weights are multiples of 8 x 8, not 33 x 64"),
    ({"weight": parse_scheme("int4 g32")}, "a scale a channel or tensor, not 'g32'"),
    ({"input": parse_input_scheme("int8 g32")}, "a scale a token or tensor, not 'g32'"),
    ({"input": parse_input_scheme("e4m3")}, "its inputs are integers of 8 bits at most"),
])  # fmt: skip
def test_what_it_cannot_compute_is_refused_with_the_reason(changes, message):
    assert message in IntMm().refusal(asked(**changes))


def test_the_table_has_it_for_cuda_only():
    assert "int_mm" in KERNELS
    assert "it is for products with rounded inputs on cuda" in why_not(IntMm(), asked(device="cpu"))
    assert select(asked(device="cpu", dtype="float32")).name != "int_mm"


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU is here")
def test_without_a_gpu_it_is_missing_and_says_what_it_needs():
    assert select(asked()) == Dequantize()
    assert refusals(asked())["int_mm"] == "it needs a CUDA device of compute capability 7.5, and torch sees none"


def test_an_older_gpu_is_told_what_is_needed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 0))
    assert why_not(IntMm(), asked()) == "it needs compute capability 7.5, this device has 7.0"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    assert select(asked()).name == "int_mm"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_model_on_a_gpu_runs_on_it():
    net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16)).cuda()
    model = fb.quantize(net, fb.Recipe([fb.Rule(".*", weight="int8", input="int8")])).model
    x = draw(20, 64).cuda()
    with torch.no_grad():
        found = model(x)
        slow = model.cpu()(x.cpu())
    torch.testing.assert_close(found.cpu(), slow, rtol=1e-4, atol=1e-4)
    assert select(model.cuda()[0].request(torch.float32)).name == "int_mm"
