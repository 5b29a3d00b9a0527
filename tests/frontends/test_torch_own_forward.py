"""A forward of a subclass that only pads with zeros is taken for a convolution; one that does anything more is not."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import fewbit as fb
from fewbit.frontends.torch.convolution import Convolution


class Plain(nn.Conv2d):
    """Nothing of its own."""


class Same(nn.Conv2d):
    """TensorFlow's "same": as many outputs as strides fit, the odd zero behind."""

    def forward(self, x):
        sides = []
        for size, kernel, stride in zip(x.shape[-2:], self.weight.shape[-2:], self.stride, strict=True):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            sides = [total // 2, total - total // 2, *sides]
        return functional.conv2d(functional.pad(x, sides), self.weight, self.bias, self.stride, 0, 1, self.groups)


class ByModule(nn.Conv2d):
    """The zeros come from a module, in two steps, and from the convolution."""

    def __init__(self, *args, **named):
        super().__init__(*args, **named)
        self.zeros = nn.ZeroPad2d((1, 0, 2, 0))

    def forward(self, x):
        return self._conv_forward(functional.pad(self.zeros(x), (0, 3)), self.weight, self.bias)


class Scaled(nn.Conv2d):
    def forward(self, x):
        return super().forward(2 * x)


class ScaledInPlace(nn.Conv2d):
    def forward(self, x):
        x.mul_(2)
        return super().forward(x)


class Normalized(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight / self.weight.abs().amax(), self.bias)


class Gained(nn.Conv2d):
    def forward(self, x):
        return super().forward(x) * 0.5


class Residual(nn.Conv2d):
    def forward(self, x):
        output = super().forward(x)
        output += x[..., 1:-1, 1:-1]
        return output


class WithoutBias(nn.Conv2d):
    def forward(self, x):
        return self._conv_forward(x, self.weight, None)


class Strided(nn.Conv2d):
    def forward(self, x):
        return functional.conv2d(x, self.weight, self.bias, 2)


class ByNumbers(nn.Conv2d):
    def forward(self, x):
        return super().forward(x if x.sum() > 0 else -x)


class Bordered(nn.Conv2d):
    def forward(self, x):
        return super().forward(functional.pad(x, (1, 1, 1, 1), value=1.0))


class Cropped(nn.Conv2d):
    def forward(self, x):
        return super().forward(functional.pad(x, (-1, 0, 0, 0)))


def window(module, size=9, training=False):
    shape = (2, module.in_channels, size, size + 1)
    return Convolution.of(module).window(shape, biased=module.bias is not None, training=training)


@pytest.mark.parametrize(("module", "padding"), [
    (Plain(4, 4, 3, padding=(1, 2)), ((1, 1), (2, 2))),
    (Same(4, 4, 3), ((1, 1), (1, 1))),
    (Same(4, 4, 3, stride=2), ((1, 1), (0, 1))),
    (Same(4, 4, (5, 2), bias=False, groups=2), ((2, 2), (0, 1))),
    (ByModule(4, 4, 3, padding=1, dilation=2), ((3, 1), (2, 4))),
])  # fmt: skip
def test_zeros_around_the_input_are_seen(module, padding):
    assert window(module).padding == padding


def test_they_may_depend_on_the_shape_of_the_input():
    module = Same(4, 4, 3, stride=2)
    assert window(module, 9).padding == ((1, 1), (0, 1))
    assert window(module, 8).padding == ((0, 1), (1, 1))


@pytest.mark.parametrize(
    "kind",
    [Scaled, ScaledInPlace, Normalized, Gained, Residual, WithoutBias, Strided, ByNumbers, Bordered, Cropped],
)
def test_anything_more_is_left_to_the_forward(kind):
    assert window(kind(4, 4, 3)).padding is None


def quantized(module):
    recipe = fb.Recipe([fb.Rule(".*", weight="int7 channel", input="int8")])
    return fb.quantize(nn.Sequential(copy.deepcopy(module)), recipe)


KINDS = [
    Plain,
    Same,
    ByModule,
    Scaled,
    Normalized,
    Gained,
    Residual,
    WithoutBias,
    Strided,
    ByNumbers,
    Bordered,
    Cropped,
]


@pytest.mark.parametrize("kind", KINDS)
def test_either_way_outputs_are_those_of_the_forward_on_rounded_numbers(kind):
    torch.manual_seed(0)
    module = kind(4, 4, 3)
    result = quantized(module)
    layer = result.model[0]
    for size in (8, 9):
        x = torch.randn(2, 4, size, size + 1)
        with torch.no_grad():
            found = result.model(x)
            module.weight.copy_(layer.weight)
            expected = module(layer.input(x))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)  # the order of float32 sums
    simple = kind in (Plain, Same, ByModule)
    names = {kernel.name for kernel, *_ in layer._ready.values()}
    assert names == {"onednn" if simple else "dequantize"}
    assert result.report.layers[0].kernel.startswith("onednn" if simple else "dequantize, not faster than float: its")


class Moody(nn.Conv2d):
    """Another forward while it is trained."""

    def forward(self, x):
        output = super().forward(x)
        return 2.0 * output if self.training else output


def test_the_mode_of_the_module_counts():
    module = Moody(4, 4, 3)
    assert window(module).padding == ((0, 0), (0, 0))
    assert window(module, training=True).padding is None
    layer = quantized(module).model[0]
    x = torch.randn(1, 4, 6, 6)
    with torch.no_grad():
        torch.testing.assert_close(layer.train()(x), 2 * layer.eval()(x), rtol=1e-5, atol=1e-5)
