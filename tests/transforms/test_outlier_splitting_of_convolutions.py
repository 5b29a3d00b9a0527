"""Outlier channel splitting between convolutions: exact in float, norms between get wider too, depthwise ones stay."""

import copy

import numpy as np
import onnx
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.interfaces import frontend_of
from fewbit.transforms.outlier_splitting import OutlierSplitting

pytestmark = pytest.mark.usefixtures("one_thread")

SPLIT = {"name": "outlier-splitting", "multiple": 4}
#: float32 sums in another order.
SUMS = {"rtol": 1e-4, "atol": 1e-4}


def layers(between, *, second=None):
    """A convolution, something between, and another whose columns of two channels are large."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 16, 3), between, second or nn.Conv2d(16, 6, 3, padding=1)).eval()
    with torch.no_grad():
        model[2].weight[:, 5] *= 12.0
        model[2].weight[:, 11] *= 6.0
    return model


def norm():
    made = nn.BatchNorm2d(16)
    torch.manual_seed(1)
    nn.init.uniform_(made.weight, 0.5, 2.0)
    nn.init.uniform_(made.bias, 0.5, 1.5)  # no channel is 0 all along: it would not show who reads it
    made.running_mean.normal_(0.0, 0.1)
    made.running_var.uniform_(0.5, 2.0)
    return made


BETWEEN = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "relu6": nn.ReLU6,
    "norm, relu": lambda: nn.Sequential(norm(), nn.ReLU()),
    "norm alone": norm,
    "relu, maximum": lambda: nn.Sequential(nn.ReLU(), nn.MaxPool2d(2)),
}


def split_model(model, batch, **options):
    with torch.no_grad():
        return OutlierSplitting(**{"multiple": 4, **options})(model, TorchFrontend(), batch)


@pytest.mark.parametrize("bits", [0, 4])
@pytest.mark.parametrize("case", BETWEEN)
def test_the_wider_model_computes_the_same_and_can_be_taken_back(case, bits):
    model, others = layers(BETWEEN[case]()), torch.randn(2, 3, 12, 12)
    before = copy.deepcopy(model.state_dict())
    with torch.no_grad():
        expected = model(others)
        applied = split_model(model, torch.randn(2, 3, 12, 12), bits=bits)
        torch.testing.assert_close(model(others), expected, **SUMS)
    assert applied.sentences[0].startswith("outlier-splitting: 4 channels were split on 1 link: ")
    assert (model[0].out_channels, model[2].in_channels) == (20, 20)
    assert (model[0].weight.shape, model[2].weight.shape) == ((20, 3, 3, 3), (6, 20, 3, 3))
    assert model[2].weight.abs().max() < before["2.weight"].abs().max() / 1.9
    applied.restore()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert (model[0].out_channels, model[2].in_channels) == (16, 16)


def test_the_whole_column_counts_at_every_position():
    model = layers(nn.ReLU())
    with torch.no_grad():
        model[2].weight[0, 7, 2, 1] = 40.0
    split_model(model, torch.randn(2, 3, 12, 12), ratio=0.01, multiple=1)
    assert torch.equal(model[2].weight[:, 7], model[2].weight[:, 16])
    assert model[2].weight[0, 7, 2, 1].item() == 20.0


class Fork(nn.Module):
    """Two convolutions of different kernels read the same."""

    def __init__(self):
        super().__init__()
        self.first, self.wide, self.narrow = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 6, 3, padding=1), nn.Conv2d(16, 6, 1)

    def forward(self, x):
        x = self.first(x).relu()
        return self.wide(x) + self.narrow(x)


@pytest.mark.parametrize("bits", [0, 4])
def test_all_that_reads_a_channel_is_split_together(bits):
    torch.manual_seed(0)
    model, others = Fork().eval(), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        expected = model(others)
        applied = split_model(model, torch.randn(2, 3, 12, 12), bits=bits)
        torch.testing.assert_close(model(others), expected, **SUMS)
    assert applied.sentences == ("outlier-splitting: 4 channels were split on 1 link: first",)
    assert model.narrow.in_channels == model.wide.in_channels == 20


def test_convolutions_in_groups_are_left_with_a_sentence(depthwise_nets):
    net, _, batches = depthwise_nets()
    result = fb.quantize(
        net, fb.Recipe([fb.Rule(".*", weight="int4 tensor")], transforms=["batchnorm", SPLIT]), calibration=batches
    )
    assert result.model.deep.weight.shape == (12, 1, 3, 3)
    assert (
        "outlier-splitting: expand and 1 more left as it was: in a convolution in groups, as a depthwise one, channels "
        "are tied"
    ) in result.report.remarks


def test_weights_of_one_scale_lose_less_with_it():
    model, batches = layers(nn.ReLU()), [torch.randn(4, 3, 12, 12)]
    rules = [fb.Rule(".*", weight="int4 channel")]
    plain, own = (
        fb.quantize(copy.deepcopy(model), fb.Recipe(rules, transforms=given), calibration=batches, evaluation=batches)
        for given in ([], [SPLIT])
    )
    assert own.report.output_sqnr > plain.report.output_sqnr + 2


GRAPH = """(float[n, 3, 12, 12] x) => (float[n, 6, h, w] y) {
    a = Conv(x, "a.weight", "a.bias")
    %s
    y = Conv<pads=[1, 1, 1, 1]>(c, "c.weight", "c.bias")
}"""
NODES = {
    "relu": "c = Relu(a)",
    "silu": "b = Sigmoid(a)\n c = Mul(a, b)",
    "slopes": 'c = PRelu(a, "slope")',
    "norm, relu": 'b = BatchNormalization(a, "gain", "shift", "mean", "variance")\n c = Relu(b)',
    "relu, maximum": "b = Relu(a)\n c = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(b)",
}


def graph(onnx_model, case, path):
    shapes = {"a.weight": (16, 3, 3, 3), "a.bias": (16,), "c.weight": (6, 16, 3, 3), "c.bias": (6,)}
    if case.startswith("norm"):
        shapes |= {
            "gain": (16,),
            "shift": (16,),
            "mean": (16,),
            "variance": np.linspace(0.5, 2.0, 16, dtype=np.float32),
        }
    if case == "slopes":
        shapes |= {"slope": (16, 1, 1)}
    made = onnx_model(GRAPH % NODES[case], shapes)
    for tensor in made.graph.initializer:
        if tensor.name == "c.weight":
            weight = onnx.numpy_helper.to_array(tensor).copy()
            weight[:, 5] *= 12.0
            tensor.CopyFrom(onnx.numpy_helper.from_array(weight, "c.weight"))
    onnx.save(made, path)
    return str(path)


@pytest.mark.parametrize("case", NODES)
def test_graphs_compute_the_same_with_wider_convolutions(onnx_model, tmp_path, case):
    from fewbit.onnx_graph.live import OnnxModel

    model = OnnxModel.read(graph(onnx_model, case, tmp_path / "net.onnx"))
    front, x = frontend_of("onnx"), np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)
    expected = front.run(model, x)["y"]
    applied = OutlierSplitting(multiple=4)(model, front, x)
    np.testing.assert_allclose(front.run(model, x)["y"], expected, **SUMS)
    assert applied.sentences[0] == "outlier-splitting: 4 channels were split on 1 link: a"
    held = {name: value.const_value.shape.numpy() for name, value in model.graph.graph.initializers.items()}
    assert (held["a.weight"], held["a.bias"], held["c.weight"]) == ((20, 3, 3, 3), (20,), (6, 20, 3, 3))
    applied.restore()
    assert np.array_equal(front.run(model, x)["y"], expected)


def test_a_gather_copies_channels_of_what_a_convolution_reads(onnx_model, tmp_path):
    from fewbit.onnx_graph.live import OnnxModel

    model = OnnxModel.read(graph(onnx_model, "relu", tmp_path / "net.onnx"))
    front, x = frontend_of("onnx"), np.random.default_rng(0).normal(size=(2, 3, 12, 12)).astype(np.float32)
    expected = front.run(model, x)["y"]
    applied = OutlierSplitting(multiple=2, gather=True)(model, front, x)
    np.testing.assert_allclose(front.run(model, x)["y"], expected, **SUMS)
    assert "copied before what reads them: a" in applied.sentences[1]


def test_a_graph_says_which_convolutions_are_in_groups(depthwise_nets, tmp_path):
    _, made, batches = depthwise_nets()
    path = tmp_path / "net.onnx"
    onnx.save(made, path)
    recipe = fb.Recipe([fb.Rule(".*", weight="int4 tensor")], transforms=["batchnorm", SPLIT])
    report = fb.quantize(str(path), recipe, calibration=[batch.numpy() for batch in batches]).report
    assert any(
        text.startswith("outlier-splitting: deep left as it was: in a convolution in") for text in report.remarks
    )
