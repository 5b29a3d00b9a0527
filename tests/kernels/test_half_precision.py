"""Products in 16 bits are those of what was cast, rounded to the type, and never infinite; fast only where they are."""

import copy
import pickle
from dataclasses import replace

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.kernels import Request, half_precision, refusals, select
from fewbit.kernels.dequantize import Dequantize
from fewbit.kernels.half_precision import HalfPrecision, OwnType, convolution_refusal
from fewbit.numerics import instructions as instructions_at_hand
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_input_scheme, parse_scheme

DTYPES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@pytest.fixture
def everywhere(monkeypatch):
    """Products in 16 bits on any processor: torch has them everywhere, though slow ones."""
    monkeypatch.setattr(half_precision, "multiplies", lambda cast, device: True)


def request(text, **changes):
    scheme = parse_scheme(text)
    return replace(Request(weight=scheme, input=scheme, device="cpu", dtype="float32", shape=(48, 64)), **changes)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def exact(x, weight, bias, dtype):
    """The product of what was cast, rounded to the type once, in float64."""
    sums = x.to(dtype).double() @ weight.to(dtype).double().T
    return sums.to(dtype).double() + (0 if bias is None else bias.double())


@pytest.mark.parametrize("rows", [(1,), (3,), (2, 5), (0,), ()])
@pytest.mark.parametrize("with_bias", [True, False])
@pytest.mark.parametrize("text", DTYPES)
def test_the_product_is_that_of_what_was_cast_rounded_to_the_type(text, with_bias, rows):
    x, weight, bias = draw(*rows, 64, seed=1), draw(48, 64), draw(48, seed=2) if with_bias else None
    kernel = HalfPrecision()
    found = kernel.apply(x, kernel.prepare(quantize(weight, parse_scheme(text))), bias)
    assert (found.dtype, found.shape) == (torch.float32, (*rows, 48))
    # A sum in another order may lie across the middle of two numbers, a step of the type away; few do.
    step = torch.finfo(DTYPES[text]).eps
    expected = exact(x, weight, bias, DTYPES[text])
    torch.testing.assert_close(found.double(), expected, rtol=step, atol=8 * step)
    assert (found.double() - expected).abs().gt(1e-5).float().mean() < 0.1 or not found.numel()


def test_the_prepared_weight_is_no_copy():
    quantized = quantize(draw(48, 64), parse_scheme("bf16"))
    assert HalfPrecision().prepare(quantized).data_ptr() == quantized.codes.data_ptr()


def test_what_overflows_saturates_and_nan_stays():
    weight = torch.full((2, 64), 1000.0)
    kernel = HalfPrecision()
    prepared = kernel.prepare(quantize(weight, parse_scheme("fp16")))
    x = torch.zeros(4, 64)
    x[0, 0], x[1, 0], x[2], x[3, 0] = 1e30, float("-inf"), 60_000.0, float("nan")
    found = kernel.apply(x, prepared, None)
    assert found[:3].tolist() == [[65504.0] * 2, [-65504.0] * 2, [65504.0] * 2]
    assert torch.isnan(found[3]).all()
    plain = nn.functional.linear(x.half(), weight.half())
    assert not torch.isfinite(plain[:3]).any()  # what it would be otherwise


def test_gradients_reach_inputs_and_bias():
    weight, bias = draw(8, 16), draw(8).requires_grad_()
    kernel, x = HalfPrecision(), draw(4, 16).requires_grad_()
    kernel.apply(x, kernel.prepare(quantize(weight, parse_scheme("bf16"))), bias).sum().backward()
    assert torch.equal(bias.grad, torch.full((8,), 4.0))
    # Sums of eight in bfloat16.
    torch.testing.assert_close(x.grad, weight.bfloat16().float().sum(0).expand(4, -1), rtol=0.02, atol=0.02)


@pytest.mark.parametrize(("instructions", "fast"), [
    ((), []), (("avx512_bf16",), ["bf16"]), (("avx512_bf16", "avx512_fp16"), ["bf16", "fp16"]),
    (("avx512_bf16", "amx_fp16"), ["bf16", "fp16"]), (("f16c", "avx512_f"), []),
])  # fmt: skip
def test_only_instructions_of_the_processor_make_it_the_kernel(monkeypatch, instructions, fast):
    monkeypatch.setattr(instructions_at_hand, "of_processor", lambda: frozenset(instructions))
    assert [text for text in ("bf16", "fp16") if select(request(text)) == HalfPrecision()] == fast
    if "fp16" not in fast:
        assert refusals(request("fp16")) == {"half": "this processor has no instructions for products in fp16"}


@pytest.mark.parametrize(("capability", "fast"), [((6, 1), []), ((7, 5), ["fp16"]), ((9, 0), ["bf16", "fp16"])])
def test_tensor_cores_are_told_by_the_capability(monkeypatch, capability, fast):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    found = [text for text in ("bf16", "fp16") if select(request(text, device="cuda")) == HalfPrecision()]
    assert found == fast


@pytest.mark.parametrize(("changes", "message"), [
    ({"input": None}, "its weights and inputs are the same cast"),
    ({"input": parse_scheme("fp16")}, "its weights and inputs are the same cast"),
    ({"input": parse_input_scheme("int8")}, "its weights and inputs are the same cast"),
    ({"dtype": "bfloat16"}, "the model computes in bfloat16 already"),
    ({"device": "mps"}, "this mps device has no instructions for products in bf16"),
])  # fmt: skip
def test_what_it_does_not_compute_is_refused_with_the_reason(changes, message):
    asked = request("bf16", **changes)
    assert HalfPrecision().refusal(asked) == message
    assert select(asked) in (Dequantize(), OwnType())


def test_weights_with_scales_never_hear_of_it(everywhere):
    asked = request("bf16", weight=parse_scheme("e4m3"), input=parse_input_scheme("e4m3"))
    assert set(refusals(asked)) == {"fbgemm"}


@pytest.mark.parametrize("given", [None, "bf16"])
def test_a_model_of_the_type_runs_the_float_layer(given):
    asked = request("bf16", dtype="bfloat16", input=given and parse_scheme(given))
    assert select(asked) == OwnType()
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8)).bfloat16()
    x = draw(3, 16).bfloat16()
    with torch.no_grad():
        expected = model(x)
        result = fb.quantize(model, fb.Recipe([fb.Rule("0", weight="bf16", input=given)]), evaluation=[x])
        assert torch.equal(result.model(x), expected)
    assert result.report.layers[0].kernel.split(",")[0] == "own-type"
    assert not result.report.layers[0].fast


CONVOLUTIONS = {
    "1d": (lambda: nn.Conv1d(48, 6, 3), (48, 9)),
    "2d": (lambda: nn.Conv2d(16, 8, 3, padding=1), (16, 6, 6)),
    "3d": (lambda: nn.Conv3d(16, 4, 2), (16, 3, 4, 4)),
    "grouped": (lambda: nn.Conv2d(32, 8, 3, groups=2, stride=2, bias=False), (32, 7, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(64, 6, 4, stride=2), (64, 3, 3)),
}


@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("text", DTYPES)
def test_convolutions_are_those_of_what_was_cast(everywhere, name, text):
    build, shape = CONVOLUTIONS[name]
    torch.manual_seed(0)
    model, dtype = nn.Sequential(build()).eval(), DTYPES[text]
    reference, x = copy.deepcopy(model)[0].double(), draw(2, *shape)
    with torch.no_grad():
        bias, reference.bias = reference.bias, None
        reference.weight.copy_(reference.weight.to(dtype))
        expected = reference(x.to(dtype).double())
        if bias is not None:
            expected = expected + bias.reshape(-1, *(1 for _ in shape[1:]))
        result = fb.quantize(model, fb.Recipe([fb.Rule(".*", weight=text, input=text)]), evaluation=[x])
        found = result.model(x)
        alone = result.model(x[0])
    assert result.report.layers[0].kernel == "half"
    # Where oneDNN has no kernel for the type, torch rounds what each tap of a transposed one adds, too.
    rounded = name == "transposed" and text == "bf16" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    atol = torch.finfo(dtype).eps if rounded else 1e-3
    torch.testing.assert_close(found.double(), expected, rtol=2 * torch.finfo(dtype).eps, atol=atol)
    assert torch.equal(alone, result.model(x[:1])[0])
    # Rounded to the type, as the simulated one is not: it runs where the report says.
    plain = found if result.model[0].bias is None else found - result.model[0].bias.reshape(-1, *(1 for _ in shape[1:]))
    torch.testing.assert_close(plain, plain.to(dtype).float(), rtol=1e-5, atol=1e-6)


def test_shallow_convolutions_and_subclasses_are_left_to_float32(everywhere):
    class Padded(nn.Conv2d):
        def forward(self, x):
            return super().forward(nn.functional.pad(x, (1, 1)))

    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=8), Padded(8, 16, 3), nn.Conv2d(16, 8, 3))
    report = fb.quantize(model, fb.Recipe([fb.Rule(".*", weight="bf16", input="bf16")])).report
    few = "dequantize, not faster than float: of {} products for each output, fewer than 128, casting costs more"
    assert report.layers[0].kernel.startswith(few.format(27))
    assert report.layers[1].kernel.startswith(few.format(9))
    assert report.layers[2].kernel.endswith("it is a subclass, whose forward is its own")
    assert report.layers[3].kernel == "half"
    with torch.no_grad():
        assert torch.isfinite(model(draw(1, 3, 12, 12))).all()
    assert convolution_refusal(request("fp16", input=None), 1000) == "its weights and inputs are the same cast"


@pytest.fixture
def model(everywhere):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(48, 64), nn.GELU(), nn.Linear(64, 8))
    return fb.quantize(net, fb.Recipe([fb.Rule(".*", weight="bf16", input="bf16")])).model.eval()


def test_copies_pickles_and_state_dicts_give_the_same(model):
    x = draw(10, 48)
    with torch.no_grad():
        expected = model(x)
        assert torch.equal(copy.deepcopy(model)(x), expected)
        assert torch.equal(pickle.loads(pickle.dumps(model))(x), expected)
        other = copy.deepcopy(model)
        other[0].packed_codes.zero_()
        assert not torch.equal(other(x), expected)
        other.load_state_dict(model.state_dict())
        assert torch.equal(other(x), expected)


def test_the_simulated_layer_differs_by_the_rounding_of_sums_only(model, monkeypatch):
    x = draw(10, 48)
    with torch.no_grad():
        fast = model(x)
        monkeypatch.setattr(half_precision, "multiplies", lambda cast, device: False)
        slow = copy.deepcopy(model)(x)
    # Two layers whose sums of up to three are rounded to eight bits each.
    assert not torch.equal(fast, slow)
    torch.testing.assert_close(fast, slow, rtol=0, atol=0.02)
