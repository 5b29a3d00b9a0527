"""oneDNN convolves what the schemes say: integer sums that do not saturate, borders of 0, the order of float32 sums."""

import copy
import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import fewbit as fb
from fewbit.activation import Activation
from fewbit.kernels import Request, onednn, refusals, select, why_not
from fewbit.kernels.dequantize import Dequantize
from fewbit.kernels.onednn import Onednn
from fewbit.kernels.window import Window
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_input_scheme, parse_scheme

pytestmark = pytest.mark.skipif(
    "onednn" not in torch.backends.quantized.supported_engines, reason="torch has no oneDNN on this processor"
)
CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
LAST = {2: torch.channels_last, 3: torch.channels_last_3d}
INPUTS = ["int8", "int8 sym", "int8 narrow sym", "int8 tensor", "int8 tensor sym", "uint8", "uint8 tensor", "int5",
          "int8 percentile", "int8 tensor mse", "int8 static", "int8 static sym", "uint8 static"]  # fmt: skip


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def window(axes=2, **changes):
    """A window that differs in every axis."""
    own = Window(
        kernel=(3, 5, 2)[:axes],
        stride=(1, 2, 1)[:axes],
        dilation=(2, 1, 1)[:axes],
        padding=((0, 1), (2, 3), (1, 1))[:axes],
        groups=1,
    )
    return replace(own, **changes)


def rounding(text):
    """A rounding of inputs; a static one has some numbers."""
    scheme = parse_input_scheme(text)
    if not scheme.static:
        return Activation(scheme=scheme)
    return Activation(
        scheme=scheme, scale=torch.tensor(0.03), zero_point=None if scheme.symmetric else torch.tensor(17.0)
    )


def reference(x, qtensor, own, bias, activation):
    """The float64 convolution of rounded inputs, a token being a sample."""
    tokens = activation.scheme.granularity.name == "token"
    rounded = activation.rounded(x.reshape(len(x), -1)).reshape(x.shape) if tokens else activation.rounded(x)
    sides = [side for both in reversed(own.padding) for side in both]
    weight = qtensor.dequantize().double().reshape(qtensor.shape[0], -1, *own.kernel)
    rest = (own.stride, 0, own.dilation, own.groups)
    padded = functional.pad(rounded.double(), sides)
    return CONVOLVE[len(own.kernel)](padded, weight, None if bias is None else bias.double(), *rest)


def both(x, weight, own, bias, inputs, scheme="int7 channel"):
    """The kernel's output and the reference's."""
    activation = inputs if isinstance(inputs, Activation) else rounding(inputs)
    quantized = quantize(weight.reshape(len(weight), -1), parse_scheme(scheme))
    found = Onednn().apply(x, Onednn().prepare(quantized, own), bias, activation)
    return found, reference(x, quantized, own, bias, activation)


def close(found, expected):
    # float32 sums, less a term as large as they are; a code that differed by one would show at 1e-3.
    error = (found.double() - expected).abs().max() / expected.abs().max()
    return found.shape == expected.shape and float(error) < 1e-5


def sqnr(expected, found):
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum()))


def asked(weight="int7 channel", inputs="int8 static", own=None, **changes):
    given = parse_input_scheme(inputs) if inputs else None
    request = Request(
        weight=parse_scheme(weight), input=given, device="cpu", dtype="float32", shape=(24, 180), window=own or window()
    )
    return replace(request, **changes)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("groups", [1, 3, 12])
@pytest.mark.parametrize("inputs", INPUTS)
def test_outputs_are_those_of_the_reference(inputs, groups, last):
    own = window(groups=groups)
    x, weight, bias = 2 * draw(3, 12, 11, 9) + 1, draw(24, 12 // groups, 3, 5, seed=1), draw(24, seed=2)
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    found, expected = both(x, weight, own, bias, inputs)
    assert close(found, expected)
    assert found.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("axes", [1, 3])
@pytest.mark.parametrize("inputs", ["int8", "int8 static"])
def test_one_and_three_axes_too(inputs, axes, last):
    own, x = window(axes), 2 * draw(2, 8, *(11, 9, 6)[:axes]) + 1
    x = x.contiguous(memory_format=LAST[axes]) if last and axes in LAST else x
    found, expected = both(x, draw(16, 8, *own.kernel, seed=1), own, draw(16), inputs)
    assert close(found, expected)


@pytest.mark.parametrize("scheme", ["int7 channel narrow", "int7 tensor", "int4 channel"])
@pytest.mark.parametrize("padding", [((0, 0), (0, 0)), ((1, 1), (0, 0)), ((0, 0), (2, 0))])
def test_other_weights_and_borders(scheme, padding):
    found, expected = both(draw(2, 8, 6, 7), draw(9, 8, 1, 1, seed=1), window(kernel=(1, 1), padding=padding), None,
                           "int8 static", scheme)  # fmt: skip
    assert close(found, expected)


@pytest.mark.parametrize("inputs", ["int8", "int8 tensor", "int8 static"])
def test_a_border_stands_for_zero_and_not_for_the_code_zero(inputs):
    # All inputs are 1 but for the border: sums of ones and zeros, right to the last place of the scale.
    own = window(kernel=(3, 3), stride=(1, 1), dilation=(1, 1), padding=((1, 1), (1, 1)))
    found, expected = both(torch.ones(1, 4, 5, 5), torch.ones(2, 4, 3, 3), own, None, inputs)
    assert close(found, expected)
    assert float(found[0, 0, 0, 0] / found[0, 0, 2, 2]) == pytest.approx(4 / 9, rel=1e-5)


def test_nothing_saturates_on_adversarial_data():
    # All inputs at the top of their range, all weights of one sign: neighbouring products add up to the most there is.
    for groups, last in ((1, True), (1, False), (64, True)):
        own = window(kernel=(3, 3), groups=groups)
        x = torch.rand(2, 64, 12, 12, generator=torch.Generator().manual_seed(0)) * 0.1 + 0.9
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        weight = torch.rand(64, 64 // groups, 3, 3, generator=torch.Generator().manual_seed(1)) * 0.1 + 0.9
        sides = [side for pair in reversed(own.padding) for side in pair]
        padded = functional.pad(x.double(), sides)
        exact = functional.conv2d(padded, weight.double(), None, own.stride, 0, own.dilation, groups)
        for inputs in ("int8", "int8 sym", "uint8 tensor"):
            found, expected = both(x, weight, own, None, inputs)
            assert close(found, expected)
            assert sqnr(exact, found.double()) > 30


LESSER = """
import torch
from fewbit.kernels import onednn, select
from tests_of_onednn import asked, both, close, sqnr, test_nothing_saturates_on_adversarial_data, window

assert onednn.saturates()
assert select(asked("int7 channel")).name == "onednn"
assert select(asked("int8 channel")).name == "dequantize"
test_nothing_saturates_on_adversarial_data()
# The negative control: what the refusal of 8 bits is for.
ones = torch.ones(1, 64, 8, 8), torch.ones(32, 64, 3, 3)
found, expected = both(*ones, window(kernel=(3, 3)), None, "uint8", "int8 channel")
assert sqnr(expected, found.double()) < 10
"""


@pytest.mark.skipif("AVX" not in torch.backends.cpu.get_cpu_capability(), reason="no x86 with AVX2")
def test_nothing_saturates_on_a_processor_without_vnni():
    # oneDNN can be held to fewer instructions than the processor has, in a process of its own.
    load = "importlib.util.spec_from_file_location('tests_of_onednn', sys.argv[1])"
    code = f"import importlib.util, sys\nspec = {load}\nmodule = importlib.util.module_from_spec(spec)\n"
    code += f"sys.modules['tests_of_onednn'] = module\nspec.loader.exec_module(module)\n{LESSER}"
    command, held = [sys.executable, "-c", code, __file__], os.environ | {"ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run(command, env=held, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr


def test_weights_of_eight_bits_are_refused_where_they_saturate_and_the_remedy_is_named(monkeypatch):
    request = asked("int8 channel")
    monkeypatch.setattr(onednn, "saturates", lambda: False)
    assert select(request) == Onednn()
    monkeypatch.setattr(onednn, "saturates", lambda: True)
    assert select(request) == Dequantize()
    assert refusals(request) == {
        "onednn": "products of 8-bit weights saturate without VNNI, which this processor lacks; "
        "weight = 'int7 channel' does not"
    }


REFUSED = {
    "inputs that stay float": ({"inputs": None}, "it is for convolutions with rounded inputs on cpu"),
    "a product": ({"window": None}, "not for products with rounded inputs on cpu"),
    "another type": ({"dtype": "bfloat16"}, "take float32 on cpu, not bfloat16"),
    "transposed ones": ({"own": window(transposed=True)}, "its convolutions are not transposed"),
    "copies of the edge": ({"own": window(padding=None)}, "its convolutions pad with zeros"),
    "groups of weights": ({"weight": "int4 g32"}, "a scale a channel or tensor, not 'g32'"),
    "asymmetric weights": ({"weight": "int8 channel asym"}, "its weights are symmetric integers"),
    "channels of inputs": ({"inputs": "int8 channel static"}, "a scale a token or tensor, not 'channel'"),
    "float inputs": ({"inputs": "e4m3 tensor"}, "its inputs are integers of 8 bits at most"),
    "long sums": ({"shape": (8, 200_000)}, "sums of 200000 products may exceed 32 bits"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_compute_is_refused_with_the_reason(case):
    changes, message = REFUSED[case]
    request = asked(**changes)
    assert message in why_not(Onednn(), request)
    assert select(request).name != "onednn"


@pytest.mark.parametrize("inputs", ["int8 static", "int8 tensor", "int8"])
@pytest.mark.parametrize("last", [False, True])
def test_nan_reaches_as_far_as_in_the_reference(inputs, last):
    x = draw(3, 4, 9, 9)
    x[1, 2, 4, 4] = float("nan")
    x = x.contiguous(memory_format=torch.channels_last) if last else x
    found, expected = both(x, draw(5, 4, 3, 3), window(kernel=(3, 3)), None, inputs)
    assert torch.equal(torch.isnan(found), torch.isnan(expected))
    assert torch.isnan(found).any()


def test_large_jobs_are_shared_out_and_give_the_same(monkeypatch):
    x, weight, own = draw(3, 16, 64, 64), draw(32, 16, 3, 3), window(kernel=(3, 3))
    found = {}
    for threads in (1, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda own=threads: own)
        for last in (False, True):
            laid = x.contiguous(memory_format=torch.channels_last) if last else x
            found[threads, last] = both(laid, weight, own, None, "int8")[0]
    assert torch.equal(found[1, False], found[3, False])
    assert torch.equal(found[1, True], found[3, True])
    assert torch.equal(found[1, False], found[1, True])


def test_weights_are_packed_for_each_shape_and_few_are_kept():
    own = window(kernel=(3, 3))
    prepared = Onednn().prepare(quantize(draw(8, 36), parse_scheme("int7 channel")), own)
    for size in (5, 6, 7, 8, 9, 10, 5):
        x, activation = draw(1, 4, size, size), rounding("int8 static")
        found = Onednn().apply(x, prepared, None, activation)
        assert close(found, reference(x, quantize(draw(8, 36), parse_scheme("int7 channel")), own, None, activation))
    assert len(prepared.packed) == 4


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, 2, groups=16), nn.Conv2d(16, 8, 1)
    )
    rules = [fb.Rule(".*", weight="int7 channel", input="int8 static")]
    return fb.quantize(net, fb.Recipe(rules), calibration=[draw(4, 3, 12, 12)]).model.eval()


def test_a_quantized_model_runs_on_it_and_gives_what_the_reference_gives(model, monkeypatch):
    x = draw(2, 3, 12, 12, seed=1)
    with torch.no_grad():
        fast = model(x)
        names = {kernel.name for layer in (model[0], model[2], model[3]) for kernel, *_ in layer._ready.values()}
        monkeypatch.setattr(Onednn, "refusal", lambda *_: "not now")
        slow = copy.deepcopy(model)(x)
    assert names == {"onednn"}
    # A code that flips between layers moves an output by a step.
    assert sqnr(slow, fast) > 60


def test_a_bias_in_int32_is_added_as_the_number_that_its_code_stands_for():
    torch.manual_seed(0)
    rule = fb.Rule(".*", weight="int7 channel", input="int8 static", bias="int32")
    layer = fb.quantize(nn.Sequential(nn.Conv2d(8, 8, 3)), fb.Recipe([rule]), calibration=[draw(4, 8, 9, 9)]).model[0]
    x = draw(2, 8, 9, 9, seed=1)
    with torch.no_grad():
        found = layer(x)
        expected = functional.conv2d(layer.input(x), layer.weight, layer.bias)
    assert {kernel.name for kernel, *_ in layer._ready.values()} == {"onednn"}
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_bias(model):
    model(draw(2, 3, 12, 12)).sum().backward()
    assert float(model[3].bias.grad[0]) == 2 * 5 * 5


def test_empty_batches_and_single_images_are_taken(model):
    with torch.no_grad():
        assert model(draw(0, 3, 12, 12)).shape == (0, 8, 5, 5)
        x = draw(1, 3, 12, 12)
        torch.testing.assert_close(model(x)[0], model(x[0]), rtol=1e-5, atol=1e-5)


def test_the_memory_format_is_that_of_the_input_or_of_the_model(model):
    x = draw(2, 3, 12, 12)
    with torch.no_grad():
        plain = model(x)
        assert plain.is_contiguous()
        assert model(x.contiguous(memory_format=torch.channels_last)).is_contiguous(memory_format=torch.channels_last)
        changed = copy.deepcopy(model).to(memory_format=torch.channels_last)
        found = changed(x)
        assert found.is_contiguous(memory_format=torch.channels_last)
        assert not found.is_contiguous()
        torch.testing.assert_close(found, plain, rtol=1e-5, atol=1e-5)
        assert changed.to(memory_format=torch.contiguous_format)(x).is_contiguous()


@pytest.mark.parametrize("norm", [False, True])
def test_a_model_with_its_channels_last_stays_one(norm):
    net = nn.Sequential(nn.Conv2d(3, 8, 1), *([nn.BatchNorm2d(8)] if norm else []), nn.Conv2d(8, 8, 3)).eval()
    recipe = fb.Recipe([fb.Rule(".*", weight="int7 channel", input="int8")], transforms=["batchnorm"] if norm else [])
    net = net.to(memory_format=torch.channels_last)
    model = fb.quantize(net, recipe, calibration=[draw(2, 3, 8, 8)]).model
    assert [layer.convolution.last_in_memory for layer in (model[0], model[-1])] == [True, True]
    with torch.no_grad():
        assert model(draw(2, 3, 8, 8)).is_contiguous(memory_format=torch.channels_last)


REPORTED = {
    "many products": (nn.Conv2d(64, 64, 3), "onednn"),
    "one for each input": (nn.Conv2d(64, 64, 3, groups=64),
                           "onednn, not faster than float: under 48 products a number are too few"),
    "few channels": (nn.Conv2d(64, 256, 1),
                     "onednn, not faster than float: under 128 products a number are too few "
                     "(48 are with the channels last: model.to(memory_format=torch.channels_last))"),
    "the same with the channels last": (nn.Conv2d(64, 256, 1).to(memory_format=torch.channels_last), "onednn"),
    "transposed": (nn.ConvTranspose2d(64, 64, 3),
                   "dequantize, not faster than float: its convolutions are not transposed"),
    "reflected": (nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect"), "dequantize, not faster than float: its "
                  "convolutions pad with zeros, and not in a forward of their own"),
}  # fmt: skip


@pytest.mark.parametrize("case", REPORTED)
def test_the_report_says_what_runs_and_whether_it_is_faster(case):
    layer, message = REPORTED[case]
    recipe = fb.Recipe([fb.Rule(".*", weight="int7 channel", input="int8")])
    report = fb.quantize(nn.Sequential(copy.deepcopy(layer)), recipe).report
    assert report.layers[0].kernel == message
    assert report.layers[0].fast == (message == "onednn")


def test_weights_alone_have_no_kernel_and_the_report_says_so():
    report = fb.quantize(nn.Sequential(nn.Conv2d(64, 64, 3)), fb.Recipe([fb.Rule(".*", weight="int8")])).report
    assert report.layers[0].kernel == (
        "dequantize, not faster than float: no kernel is for convolutions of weights alone on cpu"
    )
