"""The kernel on `torch._scaled_mm` computes what the schemes say, and gives the operator what CUDA takes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.activation import Activation
from fewbit.kernels import Request, refusals, select, why_not
from fewbit.kernels.dequantize import Dequantize
from fewbit.kernels.scaled_mm import ScaledMm
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_input_scheme, parse_scheme

PAIRS = [("e4m3 channel", "e4m3 token"), ("e4m3 channel", "e4m3 tensor"), ("e4m3 tensor", "e4m3 token"),
         ("e4m3 tensor", "e4m3 tensor"), ("e4m3 channel", "e4m3 static"), ("e4m3 tensor", "e4m3 static")]  # fmt: skip


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def rounding(text, device):
    scheme = parse_input_scheme(text)
    return Activation(scheme=scheme, scale=torch.tensor(0.005, device=device) if scheme.static else None)


def both(x, weight, bias, pair, device):
    """The kernel's output, and that of float64 products of the same rounded numbers."""
    x, bias, activation = x.to(device), None if bias is None else bias.to(device), rounding(pair[1], device)
    quantized = quantize(weight, parse_scheme(pair[0])).map(lambda tensor: tensor.to(device))
    kernel = ScaledMm(device=device)
    found = kernel.apply(x, kernel.prepare(quantized), bias, activation)
    expected = activation.rounded(x).double() @ quantized.dequantize().double().T
    return found, expected if bias is None else expected + bias.double()


def asked(**changes):
    request = Request(weight=parse_scheme("e4m3 channel"), input=parse_input_scheme("e4m3"), device="cuda",
                      dtype="bfloat16", shape=(48, 64))  # fmt: skip
    return replace(request, **changes)


@pytest.mark.parametrize("rows", [(), (1,), (5, 7)])
@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_outputs_are_those_of_the_reference(pair, rows, device):
    x, weight = (2 * draw(*rows, 64)).bfloat16(), draw(48, 64, seed=1)
    found, expected = both(x, weight, None, pair, device)
    assert found.dtype == torch.bfloat16
    assert found.shape == expected.shape == (*rows, 48)
    # The output is rounded to bfloat16, 8 bits; tensor cores may add up in less than float32, terms as large as these.
    torch.testing.assert_close(found.double(), expected, rtol=2.0**-8, atol=1e-3 * float(expected.abs().max()))


def test_without_scales_of_rows_float32_comes_out_too(device):
    found, expected = both(draw(20, 64), draw(48, 64, seed=1), draw(48), ("e4m3 tensor", "e4m3 tensor"), device)
    assert found.dtype == torch.float32
    # On the CPU sums are float32; tensor cores of compute capability 8.9 and 9.0 keep 14 bits of a term.
    tolerance = 1e-5 if device == "cpu" else 1e-3
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=tolerance * float(expected.abs().max()))


@pytest.mark.parametrize("given", ["e4m3 token", "e4m3 static"])
def test_a_row_with_nan_is_nan_and_others_are_not(given, device):
    x = draw(3, 64)
    x[1, 3] = float("nan")
    found, _ = both(x.bfloat16(), draw(48, 64), None, ("e4m3 channel", given), device)
    assert torch.isnan(found[1]).all()
    assert not torch.isnan(found[[0, 2]]).any()


@pytest.mark.parametrize("pair", PAIRS, ids=" ".join)
def test_the_operator_is_given_what_cuda_takes(pair, monkeypatch, as_on_cuda):
    operator, seen = torch._scaled_mm, []

    def watched(*args, **named):
        seen.append(as_on_cuda(operator, *args, **named))
        assert all(scale.is_contiguous() and scale.dtype == torch.float32 for scale in args[2:4])
        return operator(*args, **named)

    monkeypatch.setattr(torch, "_scaled_mm", watched)
    for rows in (1, 5):
        both(draw(rows, 64).bfloat16(), draw(48, 64, seed=1), None, pair, "cpu")
    assert seen == [(1, 48), (5, 48)]


def test_the_check_of_the_operator_is_one(as_on_cuda):
    # The negative control of the test before: 40 columns are no multiple of 16.
    codes, scale = torch.zeros(5, 64, dtype=torch.float8_e4m3fn), torch.ones(1, 1)
    weight = torch.zeros(40, 64, dtype=torch.float8_e4m3fn)
    with pytest.raises(RuntimeError, match="divisible by 16"):
        as_on_cuda(torch._scaled_mm, codes, weight.t(), scale, scale, out_dtype=torch.bfloat16)


def test_gradients_reach_the_bias_and_empty_inputs_are_taken(device):
    kernel, bias = ScaledMm(device=device), draw(48).to(device).requires_grad_()
    quantized = quantize(draw(48, 64), parse_scheme("e4m3 channel")).map(lambda tensor: tensor.to(device))
    prepared, activation = kernel.prepare(quantized), rounding("e4m3 token", device)
    kernel.apply(draw(4, 64).to(device), prepared, bias, activation).sum().backward()
    assert torch.equal(bias.grad, torch.full_like(bias, 4.0))
    assert kernel.apply(draw(0, 64).to(device), prepared, None, activation).shape == (0, 48)


@pytest.mark.parametrize(("changes", "message"), [
    ({"shape": (48, 72)}, "its weights are multiples of 16 x 16, not 48 x 72"),
    ({"weight": parse_scheme("e5m2 channel")}, "it takes e4m3 by token and channel, or by tensor, not inputs of e4m3"),
    ({"weight": parse_scheme("int8 channel")}, "it takes e4m3 by token and channel"),
    ({"input": parse_input_scheme("int8")}, "it takes e4m3 by token and channel"),
    ({"input": parse_input_scheme("e4m3 channel static")}, "it takes e4m3 by token and channel"),
    ({"weight": parse_scheme("e4m3 tile128x128")}, "it takes e4m3 by token and channel"),
    ({"dtype": "float32"}, "with a scale a token or channel it returns bfloat16, not float32"),
])  # fmt: skip
def test_what_it_cannot_compute_is_refused_with_the_reason(changes, message):
    assert message in ScaledMm().refusal(asked(**changes))


def test_by_tensor_any_type_is_taken():
    whole = {"weight": parse_scheme("e4m3 tensor"), "input": parse_input_scheme("e4m3 tensor")}
    assert all(ScaledMm().refusal(asked(**whole, dtype=dtype)) is None for dtype in ("float32", "float16", "bfloat16"))


def test_the_table_has_it_for_cuda_of_a_capability(monkeypatch):
    assert "it is for products with rounded inputs on cuda" in why_not(ScaledMm(), asked(device="cpu"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select(asked()) == Dequantize()
    assert refusals(asked())["scaled_mm"] == "it needs a CUDA device of compute capability 8.9, and torch sees none"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))
    assert refusals(asked())["scaled_mm"] == "it needs compute capability 8.9, this device has 8.6"
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (9, 0))
    assert select(asked()) == ScaledMm()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_model_on_a_gpu_runs_on_it():
    net = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 16)).cuda().bfloat16()
    model = fb.quantize(net, fb.Recipe([fb.Rule(".*", weight="e4m3", input="e4m3")]), dtype="bfloat16").model
    x = draw(20, 64).cuda().bfloat16()
    with torch.no_grad():
        found = model(x).float()
        slow = model.cpu()(x.cpu()).float()
    torch.testing.assert_close(found.cpu(), slow, rtol=0.05, atol=0.05)
