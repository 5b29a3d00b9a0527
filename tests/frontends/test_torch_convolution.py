"""Convolutions of every kind: found, taken as matrix products, quantized, calibrated."""

import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional

import fewbit as fb
from fewbit.frontends.torch.convolution import Convolution, same_rows
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.frontends.torch.quantized_convolution import QuantizedConvolution
from fewbit.qtensor import quantize

CONVOLUTIONS = {
    "Conv1d": nn.Conv1d(6, 8, 3),
    "Conv1d wide": nn.Conv1d(6, 8, 5, stride=2, padding=2, dilation=2, bias=False),
    "Conv2d": nn.Conv2d(6, 8, 3, padding=1),
    "Conv2d uneven": nn.Conv2d(6, 8, (3, 2), stride=(2, 1), padding=(0, 1), dilation=(1, 3)),
    "Conv2d 1x1": nn.Conv2d(6, 8, 1),
    "Conv2d same": nn.Conv2d(6, 8, (4, 3), padding="same"),
    "Conv2d valid": nn.Conv2d(6, 8, 3, padding="valid"),
    "Conv2d reflect": nn.Conv2d(6, 8, 3, padding=2, padding_mode="reflect"),
    "Conv2d circular": nn.Conv2d(6, 8, 3, padding="same", padding_mode="circular"),
    "Conv2d grouped": nn.Conv2d(6, 8, 3, groups=2),
    "Conv2d depthwise": nn.Conv2d(6, 12, 3, groups=6, padding=1),
    "Conv3d": nn.Conv3d(6, 4, (1, 2, 3), padding=(0, 1, 1)),
    "ConvTranspose1d": nn.ConvTranspose1d(6, 8, 3, stride=2),
    "ConvTranspose2d": nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1, output_padding=1),
    "ConvTranspose2d grouped": nn.ConvTranspose2d(6, 8, (3, 2), groups=2, dilation=(2, 1)),
    "ConvTranspose3d": nn.ConvTranspose3d(6, 4, 2, stride=2, bias=False),
}
GROUPED = ["Conv2d grouped", "Conv2d depthwise"]
PLAIN = [name for name, module in CONVOLUTIONS.items() if module.groups == 1 and not module.transposed]


def inputs(module, samples=2):
    axes = len(module.kernel_size)
    return torch.randn(samples, 6, *(9 + axis for axis in range(axes)), generator=torch.Generator().manual_seed(1))


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")  # torch's own way copies the input
@pytest.mark.parametrize("name", CONVOLUTIONS)
@pytest.mark.parametrize("batched", [True, False])
def test_a_convolution_is_the_modules_own(name, batched):
    module = CONVOLUTIONS[name]
    x = inputs(module) if batched else inputs(module)[0]
    own = Convolution.of(module)
    # The same call of the same backend, but for how it is told of the padding.
    torch.testing.assert_close(own.apply(x, module.weight, module.bias), module(x), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_the_matrix_goes_back_to_the_weight(name):
    module = CONVOLUTIONS[name]
    own = Convolution.of(module)
    matrix = own.matrix(module.weight)
    assert matrix.shape[0] == module.out_channels
    assert torch.equal(own.weight(matrix), module.weight)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_row_of_the_matrix_makes_one_output_channel(name):
    """Whatever the layout: scaling row 3 of the matrix scales channel 3 of the output and nothing else."""
    module = CONVOLUTIONS[name]
    own, x = Convolution.of(module), inputs(module)
    scale = torch.ones(module.out_channels, 1)
    scale[3] = 2.0
    scaled = own.apply(x, own.weight(own.matrix(module.weight.detach()) * scale), None)
    once = own.apply(x, module.weight.detach(), None)
    expected = once * scale.reshape(1, -1, *(1 for _ in module.kernel_size))
    assert torch.equal(scaled, expected)  # a factor of two is exact


@pytest.mark.parametrize("name", PLAIN)
def test_the_output_is_rows_times_the_matrix(name):
    module = CONVOLUTIONS[name]
    own, x = Convolution.of(module), inputs(module)
    expected = own.apply(x, module.weight, None).movedim(1, -1)
    found = torch.stack([rows @ own.matrix(module.weight).T for rows in own.rows(x)])
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)  # sums in another order


@pytest.mark.parametrize("name", GROUPED)
def test_each_group_of_outputs_is_its_part_of_the_rows_times_the_matrix(name):
    module = CONVOLUTIONS[name]
    own, x = Convolution.of(module), inputs(module)
    expected = own.apply(x, module.weight, None).movedim(1, -1)
    weight = own.matrix(module.weight).reshape(own.groups, -1, own.depth)
    parts = torch.stack([rows.reshape(len(rows), own.groups, own.depth) for rows in own.rows(x)])
    found = torch.einsum("spgk,gok->spgo", parts, weight).reshape(expected.shape)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)  # sums in another order


def test_transposed_ones_multiply_no_rows():
    rows = {name for name, module in CONVOLUTIONS.items() if Convolution.of(module).rows_apply}
    assert rows == {*PLAIN, *GROUPED}
    assert {name for name in CONVOLUTIONS if name not in rows} == {name for name in CONVOLUTIONS if "Transpose" in name}


@pytest.mark.parametrize("size", [(17, 19), (18, 20), (2, 8, 18, 19)])
def test_a_transposed_convolution_takes_the_size_of_its_output(size):
    module = nn.ConvTranspose2d(6, 8, 3, stride=2, padding=1)
    x = inputs(module)
    found = Convolution.of(module).apply(x, module.weight, module.bias, size)
    torch.testing.assert_close(found, module(x, output_size=size), rtol=1e-5, atol=1e-6)


class Padding(nn.Conv2d):
    """Pads as TensorFlow does and standardizes its weight."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.pad = nn.ZeroPad2d((0, 1, 0, 1))

    def forward(self, x):
        weight = self.weight - self.weight.mean()
        return functional.conv2d(self.pad(x), weight, self.bias, self.stride)


def test_the_forward_of_a_subclass_runs_on_the_quantized_weight():
    module = Padding(6, 8, 3).eval()
    net = nn.Sequential(module, nn.ReLU())
    x = torch.randn(2, 6, 9, 9, generator=torch.Generator().manual_seed(1))
    result = fb.quantize(net, fb.Recipe([fb.Rule(".*", weight="int8 channel", algorithm="gptq")]), calibration=[x])
    with torch.no_grad():
        expected = copy.deepcopy(module)
        expected.weight.copy_(result.model[0].weight)
        assert torch.equal(result.model[0](x), expected(x))
        assert not torch.equal(result.model[0](x), module(x))
    assert "rounded without data" in result.report.layers[0].remarks[0]  # its rows are not known


class TensorFlowPadding(nn.Conv2d):
    """Pads as TensorFlow does, by the size of the input, and leaves its weight alone."""

    def forward(self, x):
        sides = [
            max((-(-size // step) - 1) * step + kernel - size, 0)
            for size, step, kernel in zip(x.shape[-2:], self.stride, self.kernel_size, strict=True)
        ]
        height, width = sides
        x = functional.pad(x, (width // 2, width - width // 2, height // 2, height - height // 2))
        return functional.relu(functional.conv2d(x, self.weight, self.bias, self.stride))


@pytest.mark.parametrize("stride", [1, 2])
def test_the_rows_of_a_subclass_are_what_it_hands_to_the_convolution(stride):
    module = TensorFlowPadding(6, 8, 3, stride, bias=False)
    own, x = Convolution.of(module), inputs(module)
    assert own.rows_apply
    found = torch.stack([rows @ own.matrix(module.weight).T for rows in own.rows(x)]).relu()
    expected = module(x).movedim(1, -1)
    torch.testing.assert_close(found.reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)  # sums in another order


def test_gptq_leaves_a_smaller_error_than_nearest_in_a_subclass():
    draw = torch.Generator().manual_seed(0)
    module = TensorFlowPadding(6, 8, 3)
    x = torch.randn(8, 6, 9, 9, generator=draw).cumsum(1)  # channels that go together
    errors = []
    for algorithm in ("nearest", "gptq"):
        net = nn.Sequential(copy.deepcopy(module))
        rule = fb.Rule(".*", weight="int3 channel", algorithm=algorithm)
        fb.quantize(net, fb.Recipe([rule]), calibration=[x])
        with torch.no_grad():
            errors.append(float((net(x) - module(x)).square().sum()))
    assert errors[1] < errors[0]


def test_subclasses_share_no_rows_but_with_themselves():
    one, other = TensorFlowPadding(6, 8, 3), TensorFlowPadding(6, 8, 3)
    assert same_rows(one, one)
    assert not same_rows(one, other)
    assert not same_rows(one, nn.Conv2d(6, 8, 3))


def test_a_forward_that_calibration_put_upon_a_module_is_not_that_of_its_quantized_form():
    module = Padding(6, 8, 3)
    module.forward = lambda x: pytest.fail("the forward of the instance ran")
    own, x = Convolution.of(module), torch.randn(1, 6, 5, 5)
    assert torch.equal(own.apply(x, module.weight, module.bias), Padding.forward(module, x))


def test_a_subclass_follows_the_mode_of_the_model():
    class Dropping(nn.Conv2d):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.drop = nn.Dropout(0.5)

        def forward(self, x):
            return self.drop(super().forward(functional.dropout(x, 0.5, self.training)))

    net = nn.Sequential(Dropping(3, 4, 1)).train()
    model = fb.quantize(net, fb.Recipe([fb.Rule(".*", weight="int8")])).model
    x = torch.randn(1, 3, 6, 6)
    assert not torch.equal(model(x), model(x))
    assert torch.equal(model.eval()(x), model(x))
    assert not torch.equal(model.train()(x), model(x))


def test_a_subclass_with_numbers_of_its_own_is_left_alone():
    class Gained(nn.Conv2d):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            self.gain = nn.Parameter(torch.ones(1))

    assert Convolution.of(Gained(3, 3, 3)) is None
    assert Convolution.of(nn.Linear(3, 3)) is None


def test_convolutions_share_rows_only_with_one_window():
    one, other = nn.Conv2d(6, 8, 3), nn.Conv2d(6, 16, 3, bias=False)
    assert same_rows(one, other)
    assert same_rows(nn.Linear(3, 3), nn.Linear(3, 4))
    for module in (nn.Conv2d(6, 8, 1), nn.Conv2d(6, 8, 3, stride=2), nn.Conv2d(6, 8, 3, padding=1), nn.Linear(6, 8)):
        assert not same_rows(one, module)


@pytest.mark.parametrize("scheme", ["int8", "int4 {}", "int2 tensor asym", "e4m3", "nf4 {}", "int8 tile4x9"])
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_a_quantized_convolution_computes_with_what_its_codes_stand_for(name, scheme):
    model = nn.Sequential(CONVOLUTIONS[name])
    own, x = Convolution.of(model[0]), inputs(model[0])
    matrix = own.matrix(model[0].weight.detach())
    scheme = scheme.format(f"g{matrix.shape[1] // (3 if matrix.shape[1] % 2 else 2)}")
    values = quantize(matrix, fb.parse_scheme(scheme).stored_as("float32")).dequantize()
    expected = own.apply(x, own.weight(values), model[0].bias)
    (layer,) = TorchFrontend().layers(model)
    assert (layer.kind, layer.shape, layer.stored) == ("conv", tuple(values.shape), tuple(model[0].weight.shape))
    recipe = fb.Recipe([fb.Rule(kind="conv", weight=fb.parse_scheme(scheme).stored_as("float32"))])
    result = fb.quantize(nn.Sequential(CONVOLUTIONS[name]), recipe)
    module = result.model[0]
    assert isinstance(module, QuantizedConvolution)
    assert module.weight.shape == CONVOLUTIONS[name].weight.shape
    with torch.no_grad():
        assert torch.equal(module(x), expected)


def test_a_state_dict_goes_into_another_one():
    def made(seed):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.ConvTranspose2d(8, 3, 2))
        return fb.quantize(model, fb.Recipe([fb.Rule(kind="conv", weight="int4 channel asym")])).model

    one, other = made(0), made(1)
    other.load_state_dict(one.state_dict())
    x = torch.randn(1, 3, 8, 8)
    assert torch.equal(one(x), other(x))


class Net(nn.Module):
    """Two branches of one input, and what only GPTQ's fallback can do."""

    def __init__(self):
        super().__init__()
        self.small, self.large = nn.Conv2d(3, 8, 1), nn.Conv2d(3, 8, 3, padding=1)
        self.also, self.apart = nn.Conv2d(3, 8, 3, padding=1), nn.ConvTranspose2d(24, 24, 3, groups=24)

    def forward(self, x):
        x = x * 1.0
        return self.apart(torch.cat([self.small(x), self.large(x), self.also(x)], 1).relu())


def smooth_images(count, seed=0):
    """Images whose pixels resemble their neighbours, so that GPTQ has something to use."""
    noise = torch.randn(count, 3, 6, 6, generator=torch.Generator().manual_seed(seed))
    return functional.interpolate(noise, size=(20, 20), mode="bilinear")


def test_gptq_beats_nearest_on_a_convolution_and_says_where_it_cannot_be_used():
    torch.manual_seed(0)
    model, batches = Net().eval(), [smooth_images(4, seed) for seed in range(3)]
    held_out = smooth_images(4, seed=9)
    with torch.no_grad():
        expected = {name: getattr(model, name)(held_out) for name in ("small", "large", "also")}
    errors = {}
    for algorithm in ("nearest", "gptq"):
        torch.manual_seed(0)
        recipe = fb.Recipe([fb.Rule(kind="conv", weight="int3 channel", algorithm=algorithm)])
        result = fb.quantize(Net().eval(), recipe, calibration=batches if algorithm == "gptq" else None)
        with torch.no_grad():
            errors[algorithm] = {
                name: float((getattr(result.model, name)(held_out) - wanted).square().mean())
                for name, wanted in expected.items()
            }
    for name in ("large", "also"):
        assert errors["gptq"][name] < 0.7 * errors["nearest"][name]
    assert errors["gptq"]["small"] < errors["nearest"]["small"]
    assert [text for text in result.report.remarks if "rounded without data" in text] == [
        "apart: there is no statistic of its input: rounded without data"
    ]


def test_gptq_beats_nearest_on_a_depthwise_convolution():
    torch.manual_seed(0)
    module, batches, held_out = (
        nn.Conv2d(3, 6, 5, groups=3),
        [smooth_images(4, seed) for seed in range(3)],
        smooth_images(4),
    )
    errors = []
    for algorithm in ("nearest", "gptq"):
        rule = fb.Rule(kind="conv", weight="int4 channel", algorithm=algorithm)
        result = fb.quantize(nn.Sequential(copy.deepcopy(module)), fb.Recipe([rule]), calibration=batches)
        with torch.no_grad():
            errors.append(float((result.model(held_out) - module(held_out)).square().mean()))
    assert errors[1] < 0.5 * errors[0]
    row = result.report.layers[0]
    assert row.solved_sqnr > row.nearest_sqnr + 3


def test_only_convolutions_with_one_window_share_a_statistic():
    model, batches = Net().eval(), [smooth_images(2)]
    layers = TorchFrontend().layers(model)
    wanted = {layer.name: ("second_moment",) for layer in layers}
    stages = TorchFrontend().calibrate(model, layers, wanted, batches, sequential=False)
    ((part,),) = ([*stage] for stage in stages)
    moments = {name: id(own["second_moment"]) for name, own in part.statistics.items()}
    shared = {(a, b) for a, b in itertools.combinations(sorted(moments), 2) if moments[a] == moments[b]}
    assert shared == {("also", "large")}
    assert part.statistics["large"]["second_moment"].count == 2 * 20 * 20
    rows = torch.cat([*Convolution.of(model.large).rows(batches[0] * 1.0)])
    found = part.statistics["large"]["second_moment"].result()
    torch.testing.assert_close(found, rows.T @ rows / len(rows), rtol=1e-5, atol=1e-6)
