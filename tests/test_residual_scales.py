"""Scales at a residual block: its fork is rounded once for all that read it, the branches of its sum each by their own.

No runtime here wants the branches of an Add under one scale: onnxruntime and OpenVINO take two, TensorRT rounds the
skip alone.
"""

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper, parser
from torch import nn

import fewbit as fb

GRAPH = """<ir_version: 8, opset_import: ["" : 17]> g (float[2,4,9,9] x) => (float[2,4,9,9] y) {
  c0 = Conv<pads=[1,1,1,1]>(x,w0) r0 = Relu(c0)
  c1 = Conv<pads=[1,1,1,1]>(r0,w1) r1 = Relu(c1) c2 = Conv<pads=[1,1,1,1]>(r1,w2) d = Conv(r0,w3)
  a = Add(c2,d) r2 = Relu(a) y = Conv<pads=[1,1,1,1]>(r2,w4) }"""


def written(runtime, tmp_path):
    proto = parser.parse_model(GRAPH)
    draw = np.random.default_rng(0)
    for index in range(5):
        size = 1 if index == 3 else 3
        weight = 0.3 * draw.standard_normal((4, 4, size, size)).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(weight, f"w{index}"))
    onnx.save(proto, tmp_path / "float.onnx")
    calibration = [{"x": draw.standard_normal((2, 4, 9, 9)).astype(np.float32)} for _ in range(2)]
    recipe = fb.Recipe([fb.Rule(kind="conv", weight="int8 channel", input="int8 static sym")])
    result = fb.quantize(tmp_path / "float.onnx", recipe, to=runtime, calibration=calibration)
    return onnx.load(result.save(tmp_path / f"{runtime}.onnx")).graph


def rounding_of(graph, name):
    """Return the scale of the QuantizeLinear whose rounded value `name` is, following it back through its pair."""
    makers = {output: node for node in graph.node for output in node.output}
    numbers = {own.name: numpy_helper.to_array(own) for own in graph.initializer}
    node = makers[name]
    assert node.op_type == "DequantizeLinear"
    return makers[node.input[0]], float(numbers[node.input[1]])


@pytest.mark.parametrize("runtime", ["ort-cpu", "openvino", "tensorrt", "migraphx"])
def test_the_fork_is_rounded_once_for_both_branches_of_a_written_file(runtime, tmp_path):
    graph = written(runtime, tmp_path)
    readers = [node.input[0] for node in graph.node if node.op_type == "Conv"]
    rounded = [rounding_of(graph, name) for name in readers[1:4]]
    fork = {"r0", "c0"}  # where the Relu has vanished in the rounding
    forks = [scale for node, scale in rounded if node.input[0] in fork]
    assert len(forks) == 2
    assert forks[0] == forks[1]
    assert len([node for node in graph.node if node.op_type == "QuantizeLinear" and node.input[0] in fork]) == 1


@pytest.mark.parametrize(("runtime", "rounded"), [("ort-cpu", 2), ("openvino", 2), ("tensorrt", 1), ("migraphx", 0)])
def test_the_branches_of_the_sum_have_the_scales_that_the_runtime_wants(runtime, rounded, tmp_path):
    graph = written(runtime, tmp_path)
    (add,) = (node for node in graph.node if node.op_type == "Add")
    makers = {output: node for node in graph.node for output in node.output}
    found = [rounding_of(graph, name)[1] for name in add.input if makers[name].op_type == "DequantizeLinear"]
    assert len(set(found)) == len(found) == rounded


class Residual(nn.Module):
    """Two layers read the stream, and it goes on beside them."""

    def __init__(self):
        super().__init__()
        self.up, self.gate, self.down = nn.Linear(16, 32), nn.Linear(16, 32), nn.Linear(32, 16)

    def forward(self, x):
        return x + self.down(self.up(x) * self.gate(x).sigmoid())


@pytest.mark.parametrize("method", ["minmax", "mse", "entropy", "average"])
def test_torch_layers_that_read_one_stream_have_one_scale(method):
    torch.manual_seed(0)
    recipe = fb.Recipe([fb.Rule(".*", weight="int8 channel", input=f"int8 static {method}")])
    model = fb.quantize(Residual(), recipe, calibration=[torch.randn(64, 16) for _ in range(2)]).model
    up, gate, down = (layer.input.activation for layer in (model.up, model.gate, model.down))
    assert torch.equal(up.scale, gate.scale)
    assert torch.equal(up.zero_point, gate.zero_point)
    assert not torch.equal(up.scale, down.scale)
