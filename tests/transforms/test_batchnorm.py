"""BatchNorm folded into the layer before it: the same function, found by data flow, and left alone where it is not."""

import copy

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.errors import RecipeError
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.transforms import parse_transform
from fewbit.transforms.batchnorm import FoldBatchNorm


def trained(net, *shape):
    """The net in evaluation mode, with running statistics and gains that are not those of a new one."""
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, -2, 2)
            nn.init.normal_(module.bias)
    with torch.no_grad():
        for _ in range(3):
            net(3 * torch.randn(8, *shape) + 1)
    return net.eval()


NETS = {
    "linear": (lambda: nn.Sequential(nn.Linear(6, 5), nn.BatchNorm1d(5), nn.ReLU()), (6,)),
    "without bias": (lambda: nn.Sequential(nn.Conv1d(3, 5, 3, bias=False), nn.BatchNorm1d(5)), (3, 9)),
    "depthwise": (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=4, padding=1), nn.BatchNorm2d(8)), (4, 6, 6)),
    "3d": (lambda: nn.Sequential(nn.Conv3d(2, 3, 2), nn.BatchNorm3d(3)), (2, 4, 4, 4)),
    "transposed": (lambda: nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2), nn.BatchNorm2d(6)), (4, 5, 5)),
    "not affine": (lambda: nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3, affine=False)), (2, 4, 4)),
}


def fold(net, batch):
    return FoldBatchNorm()(net, TorchFrontend(), batch)


def norms(net):
    return [name for name, module in net.named_modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]


@pytest.mark.parametrize("case", NETS)
def test_the_folded_model_computes_the_same(case):
    build, shape = NETS[case]
    net, x = trained(build(), *shape), torch.randn(4, *shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = net(x)
        applied = fold(net, x[:1])
        # Another batch than that of the search, so it is the function that is equal, up to roundings of the weights.
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert norms(net) == []
    assert applied.sentences == ("1 BatchNorm was folded into the layer before it",)


def test_what_was_folded_can_be_taken_back_to_the_bit():
    build, shape = NETS["depthwise"]
    net = trained(build(), *shape)
    before = copy.deepcopy(net.state_dict())
    fold(net, torch.randn(2, *shape)).restore()
    after = net.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)


class Residual(nn.Module):
    """The convolution's output is also added behind the norm, so the norm is not its only reader."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        return y + self.norm(y)


class Twice(nn.Module):
    """One convolution under two norms."""

    def __init__(self):
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.one(self.conv(x)) + self.two(self.conv(x))


class InPlace(nn.Module):
    """The tensor is the convolution's, its numbers are not."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        y = self.conv(x)
        y.relu_()
        return self.norm(y)


class Before(nn.Sequential):
    """The norm comes first."""

    def __init__(self):
        super().__init__(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1))


class LooksInto(nn.Sequential):
    """Its forward reads a number of the norm."""

    def __init__(self):
        super().__init__(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3))

    def forward(self, x):
        return super().forward(x.to(self[1].weight.dtype))


class Made(nn.Sequential):
    """The convolution's weight is made from others at each call."""

    def __init__(self):
        super().__init__(nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 3, 1)), nn.BatchNorm2d(3))


class OtherAxis(nn.Module):
    """The norm's features are the rows of the linear layer's output."""

    def __init__(self):
        super().__init__()
        self.linear, self.norm = nn.Linear(4, 5), nn.BatchNorm1d(3)

    def forward(self, x):
        return self.norm(self.linear(x[:, :, 0]))


@pytest.mark.parametrize("kind", [Residual, Twice, InPlace, Before, LooksInto, Made, OtherAxis])
def test_a_norm_that_cannot_be_folded_stays_and_is_named(kind):
    net = trained(kind(), 3, 4, 4)
    x = torch.randn(2, 3, 4, 4)
    with torch.no_grad():
        expected, names = net(x), norms(net)
        applied = fold(net, x)
        assert torch.equal(net(x), expected)
    assert norms(net) == names
    assert "BatchNorm stays, no layer before it is read by it alone" in applied.sentences[0]
    assert applied.sentences[0].startswith(names[0])


class ByName(nn.Module):
    """The norm is called by keyword."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)

    def forward(self, x):
        return self.norm(input=self.conv(input=x))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_calls_by_keyword_and_inference_mode_are_no_obstacle(mode):
    net = trained(ByName(), 3, 4, 4)
    with mode():
        x = torch.randn(2, 3, 4, 4)
        expected = net(x)
        fold(net, x)
        torch.testing.assert_close(net(x), expected, rtol=1e-4, atol=1e-4)
    assert norms(net) == []


def test_one_that_cannot_be_folded_does_not_keep_the_others_from_it():
    net = trained(nn.Sequential(nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), Residual()), 3, 4, 4)
    applied = fold(net, torch.randn(2, 3, 4, 4))
    assert norms(net) == ["2.norm"]
    assert [sentence[:2] for sentence in applied.sentences] == ["1 ", "2."]


def test_without_data_nothing_is_folded_and_that_is_said():
    net = trained(NETS["linear"][0](), 6)
    assert "no data shows what it follows" in fold(net, None).sentences[0]
    assert norms(net) == ["1"]
    assert fold(nn.Sequential(nn.Linear(2, 2)), None).sentences == ()


def test_a_preset_that_rounds_inputs_folds_first_and_the_report_says_so():
    net = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 4, 3)), 3, 9, 9)
    x = torch.randn(8, 3, 9, 9)
    with torch.no_grad():
        expected = net(x)
    result = fb.quantize(net, "w8a8-static", calibration=[x])
    assert norms(result.model) == []
    assert "1 BatchNorm was folded into the layer before it" in result.report.remarks
    with torch.no_grad():
        error = (result.model(x) - expected).square().mean() / expected.square().mean()
    assert 1e-6 < float(error) < 1e-2  # 20 dB at least: 8 bits leave about 40, and there are two layers


def test_data_that_no_algorithm_needs_shows_where_to_fold():
    net = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), 3, 9, 9)
    assert norms(fb.quantize(copy.deepcopy(net), "w8a8", calibration=[torch.randn(2, 3, 9, 9)]).model) == []
    left = fb.quantize(net, "w8a8")
    assert norms(left.model) == ["1"]
    assert "no data shows what it follows" in left.report.remarks[0]


def test_a_run_that_fails_gives_the_model_back_with_its_norms(monkeypatch):
    net = trained(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)), 3, 9, 9)
    before = copy.deepcopy(net.state_dict())

    def fails(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("fewbit.pipeline.solve", fails)
    with pytest.raises(KeyboardInterrupt):
        fb.quantize(net, "w8a8-static", calibration=[torch.randn(2, 3, 9, 9)])
    assert norms(net) == ["1"]
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())


def test_transforms_are_named_and_others_refused():
    assert parse_transform("batchnorm") == FoldBatchNorm()
    with pytest.raises(RecipeError, match="unknown transform 'batchnrom'; did you mean 'batchnorm'"):
        parse_transform("batchnrom")
    with pytest.raises(RecipeError, match=r"5 is no transform; write for example"):
        fb.Recipe([fb.Rule(".*", weight="int8")], transforms=[5])
