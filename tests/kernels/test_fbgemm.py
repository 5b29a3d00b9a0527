"""FBGEMM computes what the schemes say: the codes to the bit, outputs up to the order of float32 sums."""

import copy
import pickle
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.activation import Activation
from fewbit.kernels import Request, fbgemm, refusals, select, why_not
from fewbit.kernels.dequantize import Dequantize
from fewbit.kernels.fbgemm import Fbgemm
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_input_scheme, parse_scheme

pytestmark = pytest.mark.skipif(
    "fbgemm" not in torch.backends.quantized.supported_engines, reason="torch has no FBGEMM on this processor"
)
INPUTS = ["int8", "int8 sym", "int8 narrow sym", "int8 tensor", "int8 tensor sym", "uint8", "uint8 tensor", "int5",
          "int8 percentile", "int8 tensor mse"]  # fmt: skip
WEIGHTS = [
    "int7 channel",
    "int7 channel narrow",
    "int7 tensor",
    "int4 channel",
    *(["int8 channel"] if fbgemm.vnni() else []),
]


def draw(*shape, seed=0):
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape).astype(np.float32))


def both(x, weight, bias, inputs, scheme="int7 channel narrow"):
    """The kernel's output and the reference's."""
    activation = inputs if isinstance(inputs, Activation) else Activation(scheme=parse_input_scheme(inputs))
    quantized = quantize(weight, parse_scheme(scheme))
    reference = Dequantize().apply(x, quantized, bias, activation)
    return Fbgemm().apply(x, Fbgemm().prepare(quantized), bias, activation), reference


def asked(weight, inputs, **changes):
    given = parse_input_scheme(inputs) if inputs else None
    request = Request(weight=parse_scheme(weight), input=given, device="cpu", dtype="float32", shape=(16, 64))
    return replace(request, **changes)


def sqnr(expected, found):
    return float(10 * torch.log10(expected.square().sum() / (expected - found).square().sum()))


@pytest.mark.parametrize("scheme", WEIGHTS)
@pytest.mark.parametrize("inputs", INPUTS)
def test_outputs_are_those_of_the_reference(inputs, scheme):
    x, weight, bias = 3 * draw(5, 7, 100) + 1, draw(33, 100, seed=1), draw(33, seed=2)
    found, reference = both(x, weight, bias, inputs, scheme)
    assert found.shape == reference.shape == (5, 7, 33)
    # 100 products a sum, in float32: a code that differed by one would show at 1e-3.
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


@pytest.mark.parametrize("inputs", INPUTS)
def test_codes_are_those_of_the_reference(inputs):
    # Products with the rows of an identity give the codes back: 63 and -63 for the scale of a weight of 1.
    x = torch.cat([2 * draw(50, 64), draw(50, 64) * 1e-30, torch.full((1, 64), 3.0), torch.zeros(1, 64)])
    found, reference = both(x, torch.eye(64), None, inputs)
    step = quantize(x, parse_input_scheme(inputs)).scale_values().max()
    assert float((found - reference).abs().max()) < 1e-3 * float(step)


def test_subnormal_inputs_count_as_zeros_as_in_the_reference():
    x = torch.full((2, 8), 1e-39)
    x[1, 0] = 2e-38
    found, reference = both(x, torch.eye(8), None, "int8")
    assert torch.equal(found[0], torch.zeros(8))
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=0)


@pytest.mark.parametrize("text", ["int8 static", "int8 static sym", "uint8 static"])
def test_static_numbers_are_taken_as_they_are(text):
    static = Activation(scheme=parse_input_scheme(text), scale=torch.tensor(0.03),
                        zero_point=None if "sym" in text else torch.tensor(17.0))  # fmt: skip
    found, reference = both(4 * draw(20, 64), draw(9, 64, seed=1), draw(9, seed=2), static)
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5 * float(reference.abs().max()))


def test_nothing_saturates_on_adversarial_data():
    # All inputs at the top of their range, all weights of one sign: neighbouring products add up to the most there is.
    x, weight = torch.rand(64, 512) * 0.1 + 0.9, torch.rand(32, 512) * 0.1 + 0.9
    exact = x @ weight.T
    for inputs in ("int8", "int8 sym", "int8 tensor", "uint8"):
        found, reference = both(x, weight, None, inputs)
        assert sqnr(reference, found) > 100
        assert sqnr(exact, found) > 30


@pytest.mark.skipif(fbgemm.vnni(), reason="with VNNI nothing saturates")
def test_weights_of_eight_bits_saturate_without_vnni():
    # The negative control of the test before: what the refusal is for.
    found, reference = both(torch.ones(4, 512), torch.ones(32, 512), None, "uint8", "int8 channel")
    assert sqnr(reference, found) < 10


def test_weights_of_eight_bits_are_refused_without_vnni_and_the_remedy_is_named(monkeypatch):
    request = asked("int8 channel", "int8")
    monkeypatch.setattr(fbgemm, "vnni", lambda: True)
    assert select(request) == Fbgemm()
    monkeypatch.setattr(fbgemm, "vnni", lambda: False)
    assert select(request) == Dequantize()
    assert refusals(request) == {
        "fbgemm": "products of 8-bit weights saturate without VNNI, which this processor lacks; "
        "weight = 'int7 channel' does not"
    }


def test_a_row_with_nan_is_nan_and_others_are_not():
    x = draw(3, 16)
    x[1, 3] = float("nan")
    found, _ = both(x, draw(4, 16), None, "int8")
    assert torch.isnan(found[1]).all()
    assert not torch.isnan(found[[0, 2]]).any()


def test_nan_under_fixed_ranges_is_nan_too():
    static = Activation(scheme=parse_input_scheme("int8 static sym"), scale=torch.tensor(0.03))
    x = draw(3, 16)
    x[1, 3] = float("nan")
    found, reference = both(x, draw(4, 16), None, static)
    assert torch.equal(torch.isnan(found), torch.isnan(reference))
    assert torch.isnan(found).sum() == 4


def test_gradients_reach_inputs_and_bias_as_they_do_in_the_reference():
    quantized, bias = quantize(draw(8, 16), parse_scheme("int7 channel")), draw(8).requires_grad_()
    static = Activation(scheme=parse_input_scheme("int8 static sym"), scale=torch.tensor(0.03))
    found = Fbgemm().apply(draw(4, 16), Fbgemm().prepare(quantized), bias, static)
    found.sum().backward()
    assert torch.equal(bias.grad, torch.full((8,), 4.0))


def test_another_engine_of_torch_is_refused_before_anything_is_packed(monkeypatch):
    request = asked("int7 channel", "int8")
    monkeypatch.setattr(fbgemm, "_ENGINES", ("none",))
    assert "set it to 'x86'" in why_not(Fbgemm(), request)
    assert select(request) == Dequantize()


FORKED = """
import os, sys
import numpy as np
from fewbit.kernels import rows_compiled

def share_out():
    x = np.random.default_rng(0).standard_normal((4000, 64)).astype(np.float32)
    low, high = np.empty(4000, np.float32), np.empty(4000, np.float32)
    rows_compiled.shared_out(rows_compiled.extremes, 3, [x, low, high])
    return np.array_equal(low, x.min(axis=1)) and np.array_equal(high, x.max(axis=1))

assert share_out()
child = os.fork()
if not child:
    os._exit(not share_out())
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no fork")
def test_a_forked_child_shares_out_with_threads_of_its_own():
    # In a process of its own: a fork takes none of the threads of torch and JAX along, which may hold locks here.
    done = subprocess.run([sys.executable, "-c", FORKED], capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("rows", [0, 1])
def test_few_rows_are_no_special_case(rows):
    found, reference = both(draw(rows, 32), draw(8, 32), draw(8), "int8")
    assert found.shape == (rows, 8)
    torch.testing.assert_close(found, reference, rtol=1e-5, atol=1e-5)


def test_large_jobs_are_shared_out_and_give_the_same(monkeypatch):
    x, weight, bias = draw(4000, 64), draw(48, 64), draw(48)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    alone, _ = both(x, weight, bias, "int8")
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    shared, _ = both(x, weight, bias, "int8")
    assert torch.equal(alone, shared)


REFUSED = {
    "inputs that stay float": ("int7 channel", None, "cpu", "float32", "it is for products with rounded inputs on cpu"),
    "another device": ("int7 channel", "int8", "meta", "float32", "not for products with rounded inputs on meta"),
    "another type": ("int7 channel", "int8", "cpu", "bfloat16", "take float32 on cpu, not bfloat16"),
    "asymmetric weights": ("int4 channel asym", "int8", "cpu", "float32", "its weights are symmetric integers"),
    "float weights": ("e4m3 channel", "int8", "cpu", "float32", "its weights are symmetric integers"),
    "groups": ("int4 g32", "int8", "cpu", "float32", "a scale a channel or tensor, not 'g32'"),
    "float inputs": ("int7 channel", "e4m3", "cpu", "float32", "its inputs are integers of 8 bits at most, not e4m3"),
    "16 bits": ("int7 channel", "int16", "cpu", "float32", "its inputs are integers of 8 bits at most, not int16"),
    "groups of inputs": ("int7 channel", "int8 g32", "cpu", "float32", "its inputs have a scale a token or tensor"),
    "a zero between codes": ("int7 channel", "int8 float-zero", "cpu", "float32", "its inputs are integers"),
}


@pytest.mark.parametrize(("text", "taken"), [("int8 static", True), ("int8 tensor", False)])
def test_the_type_of_a_scale_matters_only_where_the_kernel_finds_it(text, taken):
    given = replace(parse_input_scheme(text), scale_type="bfloat16")
    assert (why_not(Fbgemm(), asked("int7 channel", None, input=given)) is None) == taken


def test_sums_that_may_overflow_are_refused():
    # 255 * 64 * 131,587 is the first such number beyond 2^31.
    assert why_not(Fbgemm(), asked("int7 channel", "int8", shape=(1, 131_586))) is None
    assert "sums of 131587 products may exceed 32 bits; 131586 do not" in why_not(
        Fbgemm(), asked("int7 channel", "int8", shape=(1, 131_587))
    )


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_compute_is_refused_with_the_reason(case):
    weight, inputs, device, dtype, message = REFUSED[case]
    request = asked(weight, inputs, device=device, dtype=dtype)
    assert message in why_not(Fbgemm(), request)
    assert select(request) == Dequantize()


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 8))
    recipe = fb.Recipe([fb.Rule(".*", weight="int7 channel narrow", input="int8")])
    return fb.quantize(net, recipe).model.eval()


def kernel(layer):
    return select(layer.request(torch.float32)).name


def test_a_quantized_model_runs_on_it_and_gives_what_the_reference_gives(model, monkeypatch):
    assert [kernel(model[0]), kernel(model[2])] == ["fbgemm", "fbgemm"]
    x = draw(10, 48)
    with torch.no_grad():
        fast = model(x)
        monkeypatch.setattr(Fbgemm, "refusal", lambda *_: "not now")
        slow = copy.deepcopy(model)(x)
    torch.testing.assert_close(fast, slow, rtol=1e-4, atol=1e-5)


def test_copies_and_pickles_and_other_types_pack_anew(model):
    x = draw(10, 48)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
        half = copy.deepcopy(model).bfloat16()(x.bfloat16())
        assert half.dtype == torch.bfloat16
        assert sqnr(expected, half.float()) > 30


def test_loading_other_numbers_packs_anew(model):
    x = draw(10, 48)
    other = copy.deepcopy(model)
    with torch.no_grad():
        expected = model(x)
        for layer in (other[0], other[2]):
            layer.packed_codes.neg_()
        state = model.state_dict()
        other(x)
        other.load_state_dict(state)
        assert torch.equal(other(x), expected)
