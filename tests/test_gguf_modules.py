"""Modules quantized on the grids of GGUF: they run, are stored and loaded, planned, counted, and refused."""

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import PlanError
from fewbit.evaluation.level_histogram import level_histogram
from fewbit.footprint import quantized_tensors
from fewbit.interfaces import Layer, QuantizedLayer
from fewbit.kernels.packed import packed, unpacked
from fewbit.qtensor import quantize
from fewbit.schemes.gguf import GGUF_FORMATS
from fewbit.schemes.notation import parse_scheme

pytestmark = pytest.mark.usefixtures("one_thread")


def quantized(text, seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(512, 24))
    return fb.quantize(model, fb.Recipe([fb.Rule("0", weight=text)])).model


@pytest.mark.parametrize("text", GGUF_FORMATS)
def test_a_state_dict_holds_what_the_plan_counts_and_loads_back(text, tmp_path):
    model, other = quantized(text), quantized(text, seed=1)
    state, inputs = model.state_dict(), torch.randn(4, 512)
    layer = QuantizedLayer(Layer("0", "linear", (24, 512), "Linear"), parse_scheme(text))
    expected = sum(stored.nbytes for stored in quantized_tensors(layer, "float16", None))
    held = {name: part for name, part in state.items() if name not in ("0.bias", "0.weight_scheme")}
    assert sum(part.numel() * part.itemsize for part in held.values()) == expected
    assert expected * 8 == parse_scheme(text).bits_per_weight((24, 512)) * 24 * 512
    torch.save(state, tmp_path / "state.pt")
    assert not torch.equal(other(inputs), model(inputs))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other(inputs), model(inputs))
    assert torch.equal(other[0].qtensor.dequantize(), model[0].qtensor.dequantize())


@pytest.mark.parametrize("text", GGUF_FORMATS)
def test_a_module_computes_with_its_dequantized_weight_and_its_buffers_unpack(text):
    layer, inputs = quantized(text)[0], torch.randn(2, 512)
    assert torch.equal(layer(inputs), nn.functional.linear(inputs, layer.qtensor.dequantize(), layer.bias))
    again = unpacked(packed(layer.qtensor), layer.qtensor.scheme)
    assert torch.equal(again.dequantize(), layer.qtensor.dequantize())


@pytest.mark.parametrize("text", GGUF_FORMATS)
def test_an_embedding_picks_rows_of_its_dequantized_weight(text):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(10, 512))
    layer = fb.quantize(model, fb.Recipe([fb.Rule(kind="embedding", weight=text)])).model[0]
    indices = torch.tensor([[3, 9], [0, 3]])
    assert torch.equal(layer(indices), layer.qtensor.dequantize()[indices])


def test_the_plan_says_bits_and_refuses_other_widths_with_what_fits():
    model = nn.Sequential(nn.Linear(512, 8), nn.Linear(576, 8))
    plan = fb.plan(model, fb.Recipe([fb.Rule("0", weight="q4_k"), fb.Rule("1", weight="q6_k")]))
    assert plan.rows[0].notes == ("4.5 bits a weight with its scales and minima",)
    assert "1: in_features 576 is not a multiple of 256, the span of q6_k; use q8_0" in str(plan)


@pytest.mark.parametrize("target", ["compressed-tensors", "ort-cpu"])
@pytest.mark.parametrize("text", ["q4_0", "q4_1", "q4_k"])
def test_files_that_cannot_hold_them_are_refused_in_the_plan(target, text):
    recipe = fb.Recipe([fb.Rule("0", weight=text)])
    with pytest.raises(PlanError, match=rf"(no layout|no form) for.* '{text}'"):
        fb.quantize(nn.Sequential(nn.Linear(512, 8)), recipe, to=target)


@pytest.mark.parametrize("text", ["q4_k", "q4_0", "iq4_xs"])
def test_weights_are_counted_on_the_levels_of_their_codes(text):
    weight = np.random.default_rng(0).standard_normal((8, 512)).astype(np.float32)
    weight[3, :256] = 0.0
    found = quantize(weight, parse_scheme(text))
    histogram = level_histogram(weight, found)
    assert sum(histogram.weights) == weight.size
    assert sum(histogram.codes) == weight.size
    # A weight lies about its code: their means on the axis are the same.
    places = histogram.start + histogram.width * np.arange(len(histogram.weights))
    mean = np.average(places, weights=histogram.weights)
    levels = np.average(histogram.levels, weights=histogram.codes)
    assert abs(mean - levels) < 0.02 * (histogram.levels[-1] - histogram.levels[0])
