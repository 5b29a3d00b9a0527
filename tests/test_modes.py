"""Mode x number format x granularity x layer: each cell runs and computes what the schemes say, or says why not."""

import itertools
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import CalibrationError, FewbitError
from fewbit.frontends.torch.convolution import Convolution
from fewbit.frontends.torch.layers import canonical_weight
from fewbit.kernels import select
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_input_scheme


@dataclass(frozen=True)
class Case:
    """A layer and an input for it, seeded."""

    build: object
    shape: tuple[int, ...]

    def layer(self):
        torch.manual_seed(0)
        return self.build().eval()

    def inputs(self, seed=1):
        if self.shape == ():
            return torch.arange(12).reshape(3, 4)
        return torch.randn(5, *self.shape, generator=torch.Generator().manual_seed(seed)) + 0.3


LAYERS = {
    "Linear": Case(lambda: nn.Linear(32, 12), (7, 32)),
    "Conv1d": Case(lambda: nn.Conv1d(8, 12, 3), (8, 9)),
    "Conv2d": Case(lambda: nn.Conv2d(8, 12, 3, padding=1), (8, 6, 6)),
    "Conv3d": Case(lambda: nn.Conv3d(8, 6, 2), (8, 3, 3, 3)),
    "depthwise": Case(lambda: nn.Conv2d(8, 8, 4, groups=8), (8, 6, 6)),
    "ConvTranspose": Case(lambda: nn.ConvTranspose2d(8, 6, 3, stride=2), (8, 4, 4)),
    "Embedding": Case(lambda: nn.Embedding(12, 32), ()),
}
PRODUCTS = ["int8 sym", "int8 asym", "e4m3", "int16 sym"]
WEIGHT_ONLY = list(itertools.product(
    ["int8", "int4", "int2", "e4m3", "nf4"], ["tensor", "channel", "g8"],
    ["Linear", "Conv1d", "Conv2d", "Conv3d", "ConvTranspose", "Embedding"],
))  # fmt: skip
CASTS = list(itertools.product(["fp16", "bf16"], ["weight", "weight and input", "weight and output"], LAYERS))
DYNAMIC = list(itertools.product(["int8", "int8 sym", "e4m3"], ["tensor", "token"], ["Linear", "Conv2d"]))
STATIC = list(itertools.product(
    ["int8 sym", "int8 asym", "e4m3", "int16 sym"], ["tensor", "channel"],
    ["Linear", "Conv1d", "Conv2d", "Conv3d", "depthwise", "ConvTranspose"],
))  # fmt: skip


def quantized(name, weight, given=None, output=None):
    """The layer quantized as a model of one, its float form with rounded weight, and data."""
    case = LAYERS[name]
    data = [case.inputs(seed) for seed in (1, 2)]
    rule = fb.Rule(".*", weight=weight, input=given, output=output)
    result = fb.quantize(nn.Sequential(case.layer()), fb.Recipe([rule]), calibration=data)
    reference = case.layer()
    with torch.no_grad():
        matrix = quantize(canonical_weight(reference), result.plan.rows[0].scheme).dequantize()
        convolution = Convolution.of(reference)
        reference.weight.copy_(convolution.weight(matrix) if convolution else matrix)
    return result, reference, data


def agree(found, expected):
    # Sums of fewer than 100 products in float32, perhaps in another order: a wrong code would show at 1e-3.
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


@pytest.mark.parametrize(("number_format", "granularity", "layer"), WEIGHT_ONLY)
def test_weights_alone(number_format, granularity, layer):
    result, reference, data = quantized(layer, f"{number_format} {granularity}")
    with torch.no_grad():
        agree(result.model(data[0]), reference(data[0]))


@pytest.mark.parametrize(("cast", "what", "layer"), CASTS)
def test_casts(cast, what, layer):
    if layer == "Embedding" and what == "weight and input":
        what = "weight"  # indices are no numbers
    given, output = (cast if name in what else None for name in ("input", "output"))
    result, reference, data = quantized(layer, cast, given, output)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}[cast]
    with torch.no_grad():
        expected = reference(data[0].to(dtype).float() if given else data[0])
        found = result.model(data[0])
    if output:
        # Sums in another order may lie across the middle of two numbers: all but a few are equal.
        assert (found != expected.to(dtype).float()).float().mean() < 0.01
    elif given:
        # Where the processor multiplies in 16 bits the sum is rounded to them: half a step of the type.
        torch.testing.assert_close(found, expected, rtol=torch.finfo(dtype).eps, atol=1e-3 * float(expected.std()))
    else:
        agree(found, expected)


@pytest.mark.parametrize(("number_format", "granularity", "layer"), DYNAMIC)
def test_dynamic_inputs(number_format, granularity, layer):
    text = f"{number_format} {granularity}"
    result, reference, data = quantized(layer, "int7 channel" if "int" in text else "e4m3 channel", text)
    x = data[0]
    # A token of a convolution is a sample: nothing smaller factors out of it.
    rows = x.reshape(len(x), -1) if layer == "Conv2d" and granularity == "token" else x
    rounded = quantize(rows, parse_input_scheme(text)).dequantize().reshape(x.shape)
    with torch.no_grad():
        agree(result.model(x), reference(rounded))


@pytest.mark.parametrize(("number_format", "granularity", "layer"), STATIC)
def test_static_inputs(number_format, granularity, layer):
    text = f"{number_format} {granularity} static"
    result, reference, data = quantized(layer, "int7 channel" if "int" in text else "e4m3 channel", text)
    axis = 1 if Convolution.of(reference) else -1
    seen = torch.cat(data)
    moved = seen.movedim(axis, -1)
    low, high = moved.reshape(-1, moved.shape[-1]).aminmax(dim=0) if granularity == "channel" else moved.aminmax()
    scheme = result.plan.rows[0].input
    scale, zero = scheme.grid.parameters(low.clamp(max=0), high.clamp(min=0))
    with torch.no_grad():
        for x in (*data, 3 * data[0]):  # also beyond what was seen, where it clips
            rounded = scheme.grid.rounded(x.movedim(axis, -1), scale, zero).movedim(-1, axis)
            agree(result.model(x), reference(rounded))
            assert not torch.equal(rounded, x)


class Attention(nn.Module):
    """One head of 8 numbers."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.project = nn.Linear(16, 24)

    def operands(self, x):
        q, k, v = self.project(x).chunk(3, -1)
        return q, k, (q @ k.mT).softmax(-1), v

    def forward(self, x):
        q, k, v = self.project(x).chunk(3, -1)
        return (q @ k.mT).softmax(-1) @ v


@pytest.mark.parametrize("mode", ["tensor static", "tensor", "token", "g4"])
@pytest.mark.parametrize("number_format", PRODUCTS)
@torch.no_grad()
def test_attention_products(number_format, mode):
    data = [torch.randn(5, 7, 16, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    rule = fb.Rule(kind="attention", input=f"{number_format} {mode}")
    model, reference = fb.quantize(Attention().eval(), fb.Recipe([rule]), calibration=data).model, Attention()
    scheme = parse_input_scheme(f"{number_format} {mode}")
    seen = [torch.cat([own.flatten() for own in parts]) for parts in zip(*map(reference.operands, data), strict=True)]

    def rounded(values, place):
        if not scheme.static:
            return quantize(values, scheme).dequantize()
        low, high = seen[place].aminmax()
        return scheme.grid.rounded(values, *scheme.grid.parameters(low.clamp(max=0), high.clamp(min=0)))

    for x in (*data, 3 * data[0]):  # also beyond what was seen, where it clips
        q, k, _, v = reference.operands(x)
        p = (rounded(q, 0) @ rounded(k, 1).mT).softmax(-1)
        expected = rounded(p, 2) @ rounded(v, 3)
        agree(model(x), expected)
        assert not torch.equal(expected, reference(x))


@pytest.mark.parametrize("layer", ["Linear", "Conv1d", "Conv2d", "depthwise", "ConvTranspose", "Embedding"])
@pytest.mark.parametrize("text", ["int8 tensor static", "e4m3 channel static", "int8 tensor", "int8 token"])
def test_outputs(layer, text):
    result, reference, data = quantized(layer, "int8 channel", output=text)
    axis = 1 if Convolution.of(reference) else -1
    scheme = parse_input_scheme(text)
    with torch.no_grad():
        before = [reference(x) for x in data]
        moved = torch.cat(before).movedim(axis, -1)
        for x, plain in zip(data, before, strict=True):
            if scheme.static:
                rows = moved.reshape(-1, moved.shape[-1])
                low, high = rows.aminmax(dim=0) if "channel" in text else rows.aminmax()
                scale, zero = scheme.grid.parameters(low.clamp(max=0), high.clamp(min=0))
                expected = scheme.grid.rounded(plain.movedim(axis, -1), scale, zero).movedim(-1, axis)
            else:
                rows = plain.reshape(len(plain), -1) if axis == 1 and "token" in text else plain
                expected = quantize(rows, scheme).dequantize().reshape(plain.shape)
            # A sum in another order may lie across a border of two codes: all but a few are equal, those by a step.
            off = (result.model(x) - expected).abs() > 1e-5 * expected.abs().max()
            assert off.float().mean() < 0.01
            assert not torch.equal(expected, plain)


@pytest.mark.parametrize("layer", ["Conv2d", "Linear"])
@pytest.mark.parametrize(("text", "lowest", "highest"), [
    ("int8 static asym", -128, 127), ("uint8 static asym", 0, 255), ("int4 static asym", -8, 7),
    ("int8 static sym", 0, 127),  # what symmetry costs: half of the codes are never met
])  # fmt: skip
def test_behind_a_relu_an_asymmetric_range_spends_every_code_on_what_is_there(layer, text, lowest, highest):
    torch.manual_seed(0)
    layers = {"Conv2d": (nn.Conv2d(3, 8, 3), nn.Conv2d(8, 4, 3)), "Linear": (nn.Linear(16, 8), nn.Linear(8, 4))}[layer]
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1])
    data = [torch.randn(4, *(3, 12, 12) if layer == "Conv2d" else (64, 16)) for _ in range(3)]
    # Not the first layer, so that its output is what calibration and this test both see.
    rule = fb.Rule("2", weight="int8", input=text)
    fb.quantize(net, fb.Recipe([rule]), calibration=data)
    rounding = net[2].input
    with torch.no_grad():
        seen = torch.cat([net[1](net[0](x)) for x in data])
    codes = rounding.scheme.grid.codes(seen, rounding.activation.scale, rounding.activation.zero_point)
    assert (int(codes.min()), int(codes.max())) == (lowest, highest)
    if "asym" in text:
        assert float(rounding.activation.zero_point) == lowest  # 0 is exact, and nothing lies below
        steps = rounding.scheme.format.qmax - rounding.scheme.format.qmin
        # A product with the float32 next to 1 / steps.
        assert float(rounding.activation.scale) == pytest.approx(float(seen.max()) / steps, rel=2**-22)
    assert torch.equal(rounding(torch.zeros(4, 8, 3, 3)), torch.zeros(4, 8, 3, 3))


def test_a_static_output_that_no_batch_reaches_is_an_error():
    class Beside(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x)

    rule = fb.Rule(".*", weight="int8", output="int8 static")
    with pytest.raises(CalibrationError, match="idle: no calibration input reached it"):
        fb.quantize(Beside(), fb.Recipe([rule]), calibration=[torch.randn(3, 4)])


@pytest.mark.parametrize("layer", ["Linear", "Conv2d"])
@pytest.mark.parametrize("given", ["int8", "int8 tensor static"])
def test_four_bit_weights_with_eight_bit_inputs(layer, given):
    result, reference, data = quantized(layer, "int4 g8", given)
    with torch.no_grad():
        weights_alone = reference(data[0])
        found = result.model(data[0])
    noise = 10 * torch.log10(weights_alone.square().sum() / (found - weights_alone).square().sum())
    assert 30 < float(noise) < 60  # dB: 8 bits leave about 40 of a normal input


@pytest.mark.parametrize("layer", LAYERS)
@pytest.mark.parametrize("given", [None, "int8", "int8 tensor static"])
def test_keywords_and_empty_batches_are_taken_as_by_the_float_layer(layer, given):
    if layer == "Embedding" and given:
        given = None
    result, reference, data = quantized(layer, "int8 channel", given)
    with torch.no_grad():
        assert result.model[0](input=data[0]).shape == reference(input=data[0]).shape
        assert result.model(data[0][:0]).shape == reference(data[0][:0]).shape


@pytest.mark.parametrize(("dtype", "recipe", "kernel"), [
    (torch.float32, "w8a16", "dequantize"), (torch.bfloat16, "w8a16", "int8pack"),
    (torch.bfloat16, "w8a8", "dequantize"),
])  # fmt: skip
def test_the_report_names_the_kernel_that_runs(dtype, recipe, kernel):
    net = nn.Sequential(nn.Linear(64, 32)).to(dtype)
    result = fb.quantize(net, recipe, dtype="bfloat16")
    runs = select(result.model[0].request(dtype)).name
    assert result.report.layers[0].kernel.split(",")[0] == runs == kernel


REFUSED = {
    "indices": ("Embedding", "int8", "int8", "the input of an embedding is indices"),
    "groups of a convolution": ("Conv2d", "int8", "int8 g4", "a convolution takes no groups; use token or tensor"),
    "groups that do not divide": ("Linear", "int8", "int8 g5", "its width 32 is not a multiple of the group"),
    "static tokens": ("Linear", "int8", "int8 token static", "static ranges are per tensor or channel"),
    "static groups": ("Linear", "int8", "int8 g8 static", "static ranges are per tensor or channel"),
    "percentile by channel": ("Linear", "int8", "int8 channel static percentile", "comes from extremes"),
    "weights in groups that do not divide": ("Linear", "int8 g5", None, "in_features 32 is not a multiple of group"),
    "asymmetric floats": ("Linear", "e4m3 asym", None, "takes no zero point"),
    "asymmetric codebooks as inputs": ("Linear", "int8", "nf4 asym", "takes no zero point"),
    "casts in groups": ("Linear", "fp16 g8", None, "fp16 is a whole scheme and takes no further word; drop 'g8'"),
    "static casts": ("Linear", "fp16", "fp16 static", "fp16 is a whole scheme and takes no further word"),
    "cast indices": ("Embedding", "fp16", "fp16", "the input of an embedding is indices"),
    "dynamic channels": ("Linear", "int8", "int8 channel", "channel"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_every_other_cell_says_why_not(case):
    layer, weight, given, message = REFUSED[case]
    with pytest.raises(FewbitError, match=message):
        quantized(layer, weight, given)
