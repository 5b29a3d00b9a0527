"""The kernel on `torch._weight_int4pack_mm` gives it weights as CUDA takes them; what that computes is written here."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from fewbit.kernels import Request, refusals, select, why_not
from fewbit.kernels.dequantize import Dequantize
from fewbit.kernels.int4_tiles import Int4Tiles, halves
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def scheme(text):
    return parse_scheme(text).stored_as("bfloat16")


def asked(**changes):
    request = Request(weight=scheme("int4 g64"), input=None, device="cuda", dtype="bfloat16", shape=(48, 128))
    return replace(request, **changes)


def in_numbers(x, packed, size, numbers):
    """The product as torch has it: weight = (code - 8) scale + zero, the first code of a byte in its high half."""
    codes = torch.stack([packed >> 4, packed & 15], dim=-1).flatten(1).float()
    scale, zero = (numbers[..., part].float().T.repeat_interleave(size, dim=1) for part in (0, 1))
    return (x.float() @ ((codes - 8) * scale + zero).T).to(x.dtype)


@pytest.fixture
def operators(monkeypatch, as_on_cuda, device):
    """The two operators: those of CUDA, or on the CPU what they do, after torch's own checks of their arguments."""
    if device == "cuda":
        return device
    convert, multiply, shapes = torch.ops.aten._convert_weight_to_int4pack, torch.ops.aten._weight_int4pack_mm, {}

    def converted(packed, tiles):
        shapes[packed.data_ptr()] = as_on_cuda(convert, packed, tiles)
        assert packed.shape[1] * 2 % (16 * tiles) == 0
        return packed

    def multiplied(x, packed, size, numbers):
        tiled = torch.empty(shapes[packed.data_ptr()], dtype=torch.int32)
        found = in_numbers(x, packed, size, numbers)
        assert as_on_cuda(multiply, x, tiled, size, numbers) == found.shape
        return found

    # torch's own checks look the operators up by name.
    converted.default, multiplied.default = convert.default, multiply.default
    monkeypatch.setattr(torch.ops.aten, "_convert_weight_to_int4pack", converted)
    monkeypatch.setattr(torch.ops.aten, "_weight_int4pack_mm", multiplied)
    return device


@pytest.mark.parametrize("rows", [(1,), (2, 2), (0,), (70,)])
@pytest.mark.parametrize(("text", "width"), [("int4 g32", 32), ("int4 g64", 64), ("int4 g64", 192), ("int4 g128", 256)])
def test_the_product_is_the_exact_one_rounded(text, width, rows, operators):
    weight = quantize(draw(48, width), scheme(text)).map(lambda tensor: tensor.to(operators))
    x, bias = draw(*rows, width, seed=1).bfloat16().to(operators), draw(48).bfloat16().to(operators)
    found = Int4Tiles().apply(x, Int4Tiles().prepare(weight), bias)
    exact = x.double() @ weight.dequantize().double().T + bias.double()
    assert found.dtype == torch.bfloat16
    assert found.shape == exact.shape
    # bfloat16 has 8 bits: a rounding of the sum, one of the bias added, and many rows round the weight too.
    assert float((found.double() - exact).square().sum()) <= 2.0**-16 * float(exact.square().sum())


def test_the_first_code_of_a_byte_is_in_its_high_half():
    assert halves(torch.tensor([[-8, 7, 0, -1]], dtype=torch.int8)).tolist() == [[0x0F, 0x87]]


@pytest.mark.parametrize(("changes", "message"), [
    ({"weight": scheme("int4 g16")}, "symmetric int4 in groups of 32, 64, 128, 256, not int4 g16"),
    ({"weight": scheme("int8 channel")}, "symmetric int4 in groups"),
    ({"weight": scheme("int4 g64 asym")}, "symmetric int4 in groups"),
    ({"shape": (44, 128)}, "multiples of 8 rows and 32 columns, not 44 x 128"),
    ({"shape": (48, 96)}, "whole groups and multiples of 8 rows and 32 columns, not 48 x 96"),
    ({"weight": parse_scheme("int4 g64")}, "quantize with dtype='bfloat16'"),
])  # fmt: skip
def test_what_it_cannot_compute_is_refused_with_the_reason(changes, message):
    assert message in Int4Tiles().refusal(asked(**changes))


def test_the_table_has_it_for_bfloat16_on_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert select(asked()) == Dequantize()
    assert refusals(asked()) == {"int4tiles": "it needs a CUDA device of compute capability 8.0, and torch sees none"}
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    assert select(asked()) == Int4Tiles()
    assert "take bfloat16 on cuda, not float16" in why_not(Int4Tiles(), asked(dtype="float16"))
    monkeypatch.setattr(torch, "__version__", "2.4.1")
    assert why_not(Int4Tiles(), asked()) == "it needs torch 2.5, this is 2.4.1"
