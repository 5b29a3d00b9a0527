"""Quantized torch layers: they run, keep canonical bytes, load back, and survive moves between types."""

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import fewbit as fb
from fewbit.frontends.torch.quantized import QuantizedLinear
from fewbit.frontends.torch.quantized_embedding import QuantizedEmbedding
from fewbit.numerics.packing import unpack

SCHEMES = ["int4 g16", "int4 g16 asym", "int8", "int3 tensor", "e4m3", "int1 g16 asym", "int8 narrow"]


def quantized_linear(scheme, *, bias=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 24, bias=bias))
    return fb.quantize(model, fb.Recipe([fb.Rule("0", weight=scheme)])).model


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_linear_multiplies_by_its_dequantized_weight(scheme, bias):
    layer = quantized_linear(scheme, bias=bias)[0]
    inputs = torch.randn(2, 5, 32)
    assert isinstance(layer, QuantizedLinear)
    assert torch.equal(layer(inputs), nn.functional.linear(inputs, layer.qtensor.dequantize(), layer.bias))


def test_conv1d_becomes_a_quantized_linear_of_its_transposed_weight():
    torch.manual_seed(0)
    model = nn.Sequential(Conv1D(24, 32))
    original, inputs = model[0].weight.detach().clone(), torch.randn(3, 32)
    before = model(inputs)
    layer = fb.quantize(model, fb.Recipe([fb.Rule("0", weight="int8")])).model[0]
    assert layer.qtensor.shape == (24, 32)
    # Half a step; and the end of the range, 127.5 steps away, may move by the rounding of the scale to float16.
    step = float(layer.qtensor.scale.max()) * (0.5 + 127.5 * 2**-11)
    assert float((layer.qtensor.dequantize() - original.T).abs().max()) <= step
    # 32 products, each off by at most that times the input.
    bound = float(inputs.abs().sum(-1).max()) * step
    assert float((model(inputs) - before).detach().abs().max()) <= bound


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_quantized_embedding_picks_rows_of_its_dequantized_weight(scheme):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(50, 32))
    layer = fb.quantize(model, fb.Recipe([fb.Rule(kind="embedding", weight=scheme)])).model[0]
    indices = torch.tensor([[3, 49], [0, 3]])
    assert isinstance(layer, QuantizedEmbedding)
    assert torch.equal(layer(indices), layer.qtensor.dequantize()[indices])


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_state_dict_holds_canonical_bytes_and_loads_back(scheme, tmp_path):
    model = quantized_linear(scheme)
    qtensor = model[0].qtensor
    state = model.state_dict()
    bits = qtensor.scheme.format.bits
    expected = {"0.bias", "0.weight_codes", "0.weight_scale", "0.weight_scheme"}
    assert set(state) == expected | (set() if qtensor.zero_point is None else {"0.weight_zero_point"})
    assert state["0.weight_codes"].shape == (24, 32 * bits // 8)
    patterns = unpack(state["0.weight_codes"], bits, 32)
    assert torch.equal(qtensor.scheme.format.from_unsigned(patterns), qtensor.codes)
    assert state["0.weight_scale"].dtype == torch.float16

    torch.save(state, tmp_path / "state.pt")
    torch.manual_seed(1)
    other = fb.quantize(nn.Sequential(nn.Linear(32, 24)), fb.Recipe([fb.Rule("0", weight=scheme)])).model
    inputs = torch.randn(4, 32)
    assert not torch.equal(other(inputs), model(inputs))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(inputs), model(inputs))
    assert torch.equal(other[0].qtensor.codes, qtensor.codes)


def test_bytes_of_another_scheme_are_refused_by_name():
    state = quantized_linear("e4m3").state_dict()
    with pytest.raises(RuntimeError, match=r"0\.weight is stored as 'e4m3 channel', the layer has 'int8 channel'"):
        quantized_linear("int8").load_state_dict(state)


def test_bytes_that_lack_a_part_are_refused_by_name():
    model = quantized_linear("int4 g16 asym")
    state = model.state_dict()
    del state["0.weight_zero_point"]
    with pytest.raises(RuntimeError, match=r"Missing key\(s\).*0\.weight_zero_point"):
        model.load_state_dict(state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_converting_the_module_leaves_codes_and_scales_alone(dtype):
    model = quantized_linear("int4 g16")
    codes, scale = model[0].qtensor.codes.clone(), model[0].qtensor.scale.clone()
    model = model.to(dtype)
    assert torch.equal(model[0].qtensor.codes, codes)
    assert torch.equal(model[0].qtensor.scale, scale)
    assert model[0].weight.dtype == dtype
    assert model(torch.randn(2, 32, dtype=dtype)).dtype == dtype


def test_a_layer_that_hangs_at_two_places_is_replaced_at_both():
    torch.manual_seed(0)
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    fb.quantize(model, "w8a16")
    assert model[0] is model[2]
    assert isinstance(model[0], QuantizedLinear)


def test_training_mode_and_bias_are_kept():
    model = nn.Sequential(nn.Linear(16, 8)).train()
    bias = model[0].bias
    fb.quantize(model, "w8a16")
    assert model[0].training
    assert model[0].bias is bias


def test_measuring_leaves_dropout_out_and_batch_statistics_and_modes_alone():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8), nn.Dropout(0.5)).train()
    model[1].eval()
    mean = model[1].running_mean.clone()
    batch = torch.randn(4, 16) + 3.0
    first = fb.quantize(model, "w8a16", evaluation=[batch]).report
    assert torch.equal(model[1].running_mean, mean)
    assert [module.training for module in model] == [True, False, True]
    # With dropout the two forms would differ by half of their outputs, some 3 dB.
    assert first.output_sqnr > 30.0
