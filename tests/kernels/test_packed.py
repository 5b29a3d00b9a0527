"""A QTensor comes back from its integer tensors as it was."""

import pickle

import pytest
import torch

from fewbit.kernels.packed import packed, unpacked
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme


@pytest.mark.parametrize(
    "text",
    [
        "int4 g32",
        "int4 g32 asym",
        "int4 g32 float-zero",
        "nf4 g32",
        "nvfp4",
        "e4m3 tensor",
        "fp16",
        "bf16",
        "int16 g32",
        "uint16 g32 asym",
    ],
)
def test_a_qtensor_comes_back_as_it_was_and_no_float_is_stored(text):
    q = quantize(torch.randn(8, 64, generator=torch.Generator().manual_seed(0)), parse_scheme(text))
    tensors = packed(q)
    assert not any(tensor.is_floating_point() for tensor in tensors.values())
    again = unpacked(pickle.loads(pickle.dumps(tensors)), q.scheme)
    assert torch.equal(again.dequantize(), q.dequantize())
    assert again.codes.dtype == q.codes.dtype
