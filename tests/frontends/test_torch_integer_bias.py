"""Layers with a bias in int32: they add what its codes stand for, keep the codes, and say where a scale had to grow."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import fewbit as fb
from fewbit.errors import NonFiniteError, PlanError
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.integer_bias import IntegerBias
from fewbit.qtensor import QTensor

LARGEST = 2**30


class Scaled(nn.Conv2d):
    """A convolution whose own forward does more than convolve."""

    def forward(self, x):
        return 2 * super().forward(x)


LAYERS = {
    "Linear": (lambda: nn.Linear(8, 6), (5, 8)),
    "Conv1D": (lambda: Conv1D(6, 8), (5, 8)),
    "Conv1d": (lambda: nn.Conv1d(4, 6, 3), (4, 9)),
    "Conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1), (4, 6, 6)),
    "Conv3d": (lambda: nn.Conv3d(4, 6, 2), (4, 3, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2), (4, 4, 4)),
    "transposed and grouped": (lambda: nn.ConvTranspose2d(4, 6, 3, groups=2), (4, 4, 4)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, groups=2), (4, 6, 6)),
    "depthwise": (lambda: nn.Conv2d(6, 6, 3, groups=6), (6, 6, 6)),
    "subclass": (lambda: Scaled(4, 6, 3), (4, 6, 6)),
}
SCHEMES = [("int8 channel", "int8 static"), ("int3 tensor", "int4 static sym"), ("int7 channel asym", "int16 static")]


def made(name, *, large=False):
    """A model of one layer, and data; `large`: two numbers of its bias are too much for int32."""
    build, shape = LAYERS[name]
    torch.manual_seed(0)
    layer = build().eval()
    with torch.no_grad():
        layer.bias.copy_(torch.linspace(-1, 1, 6))
        if large:
            layer.bias[[1, 4]] = torch.tensor([-3e9, 8e9])
    return nn.Sequential(layer), [torch.randn(5, *shape) + 0.3 for _ in range(2)]


def rounded(model, data, weight="int8 channel", given="int8 static", **more):
    rule = fb.Rule(".*", weight=weight, input=given, bias="int32", **more)
    return fb.quantize(model, fb.Recipe([rule]), calibration=data)


def by_numpy(layer, bias):
    """Codes and values of `bias` from the numbers in a layer's state_dict, in float64 and as a runtime dequantizes."""
    state = {name: tensor.numpy() for name, tensor in layer.state_dict().items()}
    scale = state["input.scale"] * state["weight_scale"].astype(np.float32).reshape(-1)
    codes = np.rint(bias.numpy().astype(np.float64) / scale.astype(np.float64))
    assert np.abs(codes).max() <= LARGEST
    return codes.astype(np.int32), codes.astype(np.int32).astype(np.float32) * scale


@pytest.mark.parametrize("large", [False, True])
@pytest.mark.parametrize(("weight", "given"), SCHEMES)
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_adds_what_the_codes_of_its_bias_stand_for(name, weight, given, large):
    model, data = made(name, large=large)
    reference = copy.deepcopy(model)[0]
    bias = reference.bias.detach().clone()
    result = rounded(model, data, weight, given)
    layer, x = model[0], data[0]
    codes, values = by_numpy(layer, bias)
    np.testing.assert_array_equal(layer.state_dict()["bias_codes"].numpy(), codes, strict=True)
    np.testing.assert_array_equal(layer.bias.numpy(), values, strict=True)
    assert bool(result.report.layers[0].remarks) == large
    with torch.no_grad():
        reference.weight.copy_(layer.weight.T if name == "Conv1D" else layer.weight)
        reference.bias.copy_(torch.from_numpy(values))
        found, expected = model(x), reference(layer.input(x))
        # Sums of fewer than 100 products in float32, perhaps in another order; in the large channels of 1e9 and more.
        channel = {"Linear": -1, "Conv1D": -1}.get(name, 1)
        for own, there in zip(found.movedim(channel, 0), expected.movedim(channel, 0), strict=True):
            torch.testing.assert_close(own, there, rtol=1e-5, atol=1e-5 * float(there.abs().max()))
        if "int3" in weight and not large:  # the negative control: a unit so large that the rounding shows
            reference.bias.copy_(bias)
            assert float((found - reference(layer.input(x))).abs().max()) > 1e-3


@pytest.mark.parametrize("algorithm", ["nearest", "gptq"])
def test_a_scale_that_had_to_grow_is_remarked_with_layer_channels_and_factor(algorithm):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(), nn.Linear(8, 4))
    with torch.no_grad():
        model[2].bias[1] = 5e6
    weight, data = model[2].weight.detach().clone(), [torch.randn(40, 16) for _ in range(3)]
    plain = fb.quantize(
        copy.deepcopy(model),
        fb.Recipe([fb.Rule(".*", weight="int8", input="int8 static", algorithm=algorithm)]),
        calibration=data,
    ).model[2]
    report = rounded(model, data, algorithm=algorithm).report
    layer = model[2]
    factor = float(layer.qtensor.scale[1] / plain.qtensor.scale[1])
    assert factor > 10
    sentence = (
        f"int32 does not hold 1 of 4 numbers of its bias: the scale of their weights grew {factor:.3g} times, "
        "and codes were rounded to nearest anew"
    )
    assert report.layers[1].remarks == (sentence,)
    assert report.layers[0].remarks == ()
    assert f"2: {sentence}" in report.remarks
    assert report.layers[1].states == ("quantized", "fell back")
    assert int(layer.bias_codes[1]) > 0.99 * LARGEST
    assert float(layer.bias[1]) == pytest.approx(5e6, rel=2**-22)  # a float32
    # The other channels are as they were; this one is rounded to nearest under its new scale.
    for channel in (0, 2, 3):
        assert torch.equal(layer.qtensor.codes[channel], plain.qtensor.codes[channel])
    nearest = (weight[1] * (1 / layer.qtensor.scale[1])).round()
    assert torch.equal(layer.qtensor.codes[1].float(), nearest)


def test_the_usual_bias_leaves_the_weight_as_it_was():
    for algorithm in ("nearest", "gptq"):
        model, data = made("Linear")
        other = copy.deepcopy(model)
        rounded(model, data, "int4 channel", algorithm=algorithm)
        rule = fb.Rule(".*", weight="int4 channel", input="int8 static", algorithm=algorithm)
        fb.quantize(other, fb.Recipe([rule]), calibration=data)
        assert torch.equal(model[0].qtensor.codes, other[0].qtensor.codes)
        assert torch.equal(model[0].qtensor.scale, other[0].qtensor.scale)


@pytest.mark.parametrize("name", ["Linear", "Conv2d"])
def test_the_state_dict_holds_the_codes_and_loads_back_to_the_bit(name, tmp_path):
    model, data = made(name, large=True)
    rounded(model, data)
    state = model.state_dict()
    assert set(state) == {
        "0.bias_codes", "0.weight_codes", "0.weight_scale", "0.weight_scheme", "0.input.scale", "0.input.zero_point",
    }  # fmt: skip
    assert state["0.bias_codes"].dtype == torch.int32
    torch.save(state, tmp_path / "state.pt")
    other, _ = made(name)
    rounded(other, [3 * data[1]])
    assert not torch.equal(other(data[0]), model(data[0]))
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(other[0].bias, model[0].bias)
    assert torch.equal(other[0].bias_codes, model[0].bias_codes)
    assert torch.equal(other(data[0]), model(data[0]))


def test_a_float_bias_does_not_load_into_an_integer_one_nor_the_other_way_round():
    model, data = made("Linear")
    plain = copy.deepcopy(model)
    fb.quantize(plain, fb.Recipe([fb.Rule(".*", weight="int8", input="int8 static")]), calibration=data)
    rounded(model, data)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\).*"0\.bias_codes".*\n.*Unexpected key\(s\).*"0\.bias"'):
        model.load_state_dict(plain.state_dict())
    with pytest.raises(RuntimeError, match=r'Missing key\(s\).*"0\.bias"'):
        plain.load_state_dict(model.state_dict())
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.bias_codes"):
        model.load_state_dict(model.state_dict() | {"0.bias_codes": torch.zeros(5, dtype=torch.int32)})


@pytest.mark.parametrize("name", ["Linear", "Conv2d"])
def test_copies_and_pickles_compute_the_same(name):
    model, data = made(name)
    rounded(model, data)
    before = model(data[0])
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(other(data[0]), before)
        assert torch.equal(other[0].bias_codes, model[0].bias_codes)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("name", ["Linear", "Conv2d"])
def test_converting_the_module_leaves_the_codes_alone(name, dtype):
    model, data = made(name)
    rounded(model, data)
    codes, bias = model[0].bias_codes.clone(), model[0].bias.clone()
    with torch.no_grad():
        before = model(data[0])
        model.to(dtype)
        assert torch.equal(model[0].bias, bias.to(dtype))
        assert model(data[0].to(dtype)).dtype == dtype
        assert torch.equal(model.to(torch.float32)(data[0]), before)
    assert torch.equal(model[0].bias_codes, codes)
    assert torch.equal(model[0].bias, bias)


def test_a_rounded_bias_is_no_parameter_and_is_seen_where_a_bias_is_looked_for():
    model, data = made("Linear")
    rounded(model, data)
    assert list(model.parameters()) == []
    assert "bias=int32" in str(model)
    assert isinstance(model[0].bias, torch.Tensor)
    plain = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 2, bias=False), nn.Embedding(3, 4))
    fb.quantize(plain, fb.Recipe([fb.Rule(".*", weight="int8")]))
    assert isinstance(plain[0].bias, nn.Parameter)
    assert plain[1].bias is plain[2].bias is None
    assert [layer.integer_bias for layer in plain] == [None, None, None]
    assert "bias" not in str(plain)


def test_a_writer_gets_codes_and_scale_by_the_name_of_the_layer():
    model, data = made("Conv2d")
    rounded(model, data)
    given = list(TorchFrontend().tensors(model, "float32"))
    (bias,) = [value for name, value in given if name == "0" and isinstance(value, IntegerBias)]
    (weight,) = [value for name, value in given if name == "0" and isinstance(value, QTensor)]
    assert torch.equal(bias.codes, model[0].bias_codes)
    assert torch.equal(bias.scale, weight.scale.reshape(-1) * model[0].input.activation.scale)
    assert not [name for name, _ in given if name.startswith("0.")]


def test_a_folded_norm_brings_a_bias_that_is_rounded():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU()).eval()
    with torch.no_grad():
        model[1].running_mean.normal_()
        model[1].bias.normal_()
    data = [torch.randn(4, 3, 8, 8)]
    recipe = fb.Recipe([fb.Rule(".*", weight="int8", input="int8 static", bias="int32")], transforms=["batchnorm"])
    assert fb.plan(model, recipe).rows[0].notes == ("it has no bias to round",)
    expected = model(data[0])
    result = fb.quantize(model, recipe, calibration=data)
    assert result.report.layers[0].becomes.endswith(", bias int32")
    assert result.report.layers[0].notes == ()
    assert model[0].integer_bias is not None
    noise = (model(data[0]) - expected).square().sum() / expected.square().sum()
    assert 10 * float(torch.log10(noise.detach())) < -30  # dB: 8 bits leave about 40


def test_a_bias_that_is_not_finite_is_named_before_any_work():
    model, data = made("Linear")
    with torch.no_grad():
        model[0].bias[2] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^0\.bias: 1 of its numbers are NaN or infinite; repair them, or keep"):
        rounded(model, data)
    assert type(model[0]) is nn.Linear


def test_a_bias_for_which_no_scale_is_large_enough_names_its_layer_and_leaves_the_model_float():
    model, data = made("Linear")
    with torch.no_grad():
        model[0].bias[2] = 1e38
    with pytest.raises(NonFiniteError, match=r"^0: the scale of its input is .*; leave out `bias`$"):
        rounded(model, [1e-25 * x for x in data])
    assert type(model[0]) is nn.Linear


def test_compressed_tensors_holds_no_integer_bias_and_says_so_in_the_plan_and_before_writing(tmp_path):
    model, data = made("Linear")
    recipe = fb.Recipe([fb.Rule(".*", weight="int8", input="int8 static", bias="int32")])
    sentence = "0: compressed-tensors stores a bias as floats; leave out `bias`, or save the module's state_dict"
    assert fb.plan(model, recipe, to="compressed-tensors").problems == (sentence,)
    result = fb.quantize(model, recipe, calibration=data)
    with pytest.raises(PlanError, match=sentence):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
