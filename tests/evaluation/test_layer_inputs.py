"""What layers are given in an evaluation: of a module and of its ONNX file alike, and only on the first batch."""

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip


def images(count, factor=1.0):
    return [np.random.default_rng(n).standard_normal((4, 3, 16, 16)).astype(np.float32) * factor for n in range(count)]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    onnx = pytest.importorskip("onnx")
    from onnx import TensorProto, helper, numpy_helper

    model = network()
    tensors = {name: value.detach().numpy() for name, value in model.state_dict().items()}
    nodes = [
        helper.make_node("Conv", ["x", "0.weight", "0.bias"], ["a"], name="0", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "2.weight", "2.bias"], ["c"], name="2", pads=[1, 1, 1, 1], group=8),
        helper.make_node("Relu", ["c"], ["d"]),
        helper.make_node("GlobalAveragePool", ["d"], ["e"]),
        helper.make_node("Flatten", ["e"], ["f"]),
        helper.make_node("Gemm", ["f", "6.weight", "6.bias"], ["y"], name="6", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "network",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 3, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 4])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )  # fmt: skip
    path = tmp_path_factory.mktemp("exported") / "network.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def inputs(model, recipe="w8a8-static", evaluation=None):
    report = fb.quantize(model, recipe, calibration=images(2), evaluation=evaluation or images(2)).report
    return [own.inputs for own in report.layers], report


def test_a_module_and_its_file_are_given_the_same(exported):
    (own, report), (other, simulated) = inputs(network()), inputs(exported)
    assert len(own) == len(other) == 3
    for left, right in zip(own, other, strict=True):
        # Both run in float32, in another order of sums.
        assert left.channels == pytest.approx(right.channels, rel=1e-3)
        assert (left.low, left.high) == pytest.approx((right.low, right.high), rel=1e-4, abs=1e-6)
        assert (left.numbers, left.counted, left.levels) == (right.numbers, right.counted, right.levels)
        # A number at the border of two bins may fall into either.
        assert sum(abs(a - b) for a, b in zip(left.bins, right.bins, strict=True)) <= 0.002 * left.counted
    assert report.forward_seconds is not None
    assert simulated.forward_seconds is None  # nothing of it runs in integers


def test_only_the_first_batch_is_looked_at(exported):
    for model in (network(), exported):
        found, _ = inputs(model, evaluation=[images(1)[0], images(1, 1000.0)[0]])
        assert found[0].numbers == images(1)[0].size
        assert found[0].high == pytest.approx(float(images(1)[0].max()))


def test_what_lies_beyond_the_range_of_calibration_is_counted(exported):
    wide = images(1, 3.0)
    for model in (network(), exported):
        found, report = inputs(model, evaluation=wide)
        seen = np.concatenate([batch.ravel() for batch in images(2)])
        beyond = ((wide[0] > seen.max() * 1.02) | (wide[0] < seen.min() * 1.02)).mean()
        # Half a step of 256 on either side, and a zero point that is rounded.
        assert found[0].clipped == pytest.approx(beyond, rel=0.1)
        assert "inputs" in report.files()["report.html"].decode()


def test_layers_whose_inputs_stay_float_are_looked_at_too(exported):
    for model in (network(), exported):
        found, _ = inputs(model, "w8a16")
        assert all(own.levels == () and own.clipped is None for own in found)


def test_without_evaluation_nobody_looks(exported):
    report = fb.quantize(network(), "w8a8-static", calibration=images(2)).report
    assert [own.inputs for own in report.layers] == [None] * 3
    assert report.forward_seconds is None
