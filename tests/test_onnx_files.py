"""From an ONNX model to a file that a runtime runs in few bits: what the file computes is what was measured."""

import json
import warnings
from dataclasses import replace

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx import parser

import fewbit as fb
from fewbit.checkpoints.onnx.rules import violations
from fewbit.errors import CalibrationError, CheckpointError, FewbitWarning, PlanError, RecipeError
from fewbit.runtimes import RUNTIMES, runtime_named

GRAPH = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[n, 3, 12, 12] x) => (float[n, 10] y)
<float[8, 3, 3, 3] stem_weight, float[8] stem_bias, float[8, 8, 3, 3] body_weight, float[8] body_bias,
 float[8, 10] fc_weight, float[10] fc_bias>
{
    a = Conv<pads=[1, 1, 1, 1]>(x, stem_weight, stem_bias)
    b = Relu(a)
    c = Conv<pads=[1, 1, 1, 1]>(b, body_weight, body_bias)
    d = Add(c, b)
    e = GlobalAveragePool(d)
    f = Flatten(e)
    g = MatMul(f, fc_weight)
    y = Add(g, fc_bias)
}
"""


def model():
    draw = np.random.default_rng(0)
    proto = parser.parse_model(GRAPH)
    for value in proto.graph.value_info:
        shape = [own.dim_value for own in value.type.tensor_type.shape.dim]
        numbers = (draw.standard_normal(shape) * (0.1 if len(shape) == 1 else 0.3)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(numbers, value.name.replace("_", ".")))
    del proto.graph.value_info[:]
    for node in proto.graph.node:
        for place, name in enumerate(node.input):
            node.input[place] = name.replace("_", ".")
    return proto


def batches(count=4):
    return [np.random.default_rng(n).standard_normal((5, 3, 12, 12)).astype(np.float32) for n in range(count)]


@pytest.fixture(autouse=True)
def no_weights_of_7_bits(monkeypatch):
    """Let the processor be one that does not saturate; `ran` adds in 32 bits on any."""
    monkeypatch.setattr("fewbit.checkpoints.onnx.format.processor_flags", frozenset)


def ran(path, x):
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


def apart(path, result, x):
    """Return the largest difference between file and simulation, in steps of the last rounding's size."""
    expected = result.run(x)["y"]
    return float(np.abs(ran(path, x) - expected).max() / np.abs(expected).max())


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_a_file_computes_what_was_simulated(runtime, tmp_path):
    result = fb.quantize(model(), "w8a8-static", to=runtime, calibration=batches(), evaluation=batches(1))
    assert result.report.output_sqnr > 30
    path = result.save(tmp_path / "net.onnx")
    onnx.checker.check_model(path)
    # A value that lies at the middle of two codes may fall to either: a step of 1/255 of a range, averaged and summed.
    assert apart(path, result, batches(6)[5]) < 0.01
    rules = violations(ir.load(path), runtime_named(runtime))
    assert not rules, rules


def test_a_scale_that_is_twice_as_large_is_noticed(tmp_path):
    result = fb.quantize(model(), "w8a8-static", to="ort-cpu", calibration=batches())
    path = result.save(tmp_path / "net.onnx")
    proto = onnx.load(path)
    scale = next(own for own in proto.graph.initializer if own.name.startswith("body") and "scale" in own.name)
    scale.CopyFrom(onnx.numpy_helper.from_array(2 * onnx.numpy_helper.to_array(scale), scale.name))
    onnx.save(proto, path)
    assert apart(path, result, batches(6)[5]) > 0.02


def test_onnxruntime_runs_every_layer_in_integers_and_the_report_says_on_what(tmp_path):
    result = fb.quantize(model(), "w8a8-static", to="ort-cpu", calibration=batches())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result.save(tmp_path / "net.onnx")
    told = json.loads((tmp_path / "net.report.json").read_text())
    kernels = {layer["name"]: layer["kernel"] for layer in told["layers"]}
    assert {name: kernel.split()[1].rstrip(",") for name, kernel in kernels.items()} == {
        "stem": "QLinearConv",
        "body": "QLinearConv",
        "fc": "QGemm",
    }
    assert any("values between layers are rounded too" in remark for remark in told["remarks"])
    assert (tmp_path / "net.report.html").read_text().startswith("<!doctype html>")


def test_ranges_between_layers_are_taken_when_the_file_is_written_if_not_before(tmp_path):
    result = fb.quantize(model(), "w8a8-static", calibration=batches())
    result.save(tmp_path / "late.onnx", runtime="ort-cpu")
    assert not result.model.values  # the model itself is as it was
    told = json.loads((tmp_path / "late.report.json").read_text())
    assert all(layer["fast"] for layer in told["layers"])
    # What is rounded between layers was not simulated: some steps of 1/255 of a range.
    assert apart(tmp_path / "late.onnx", result, batches(6)[5]) < 0.03


def test_a_layer_that_should_run_in_integers_and_does_not_is_warned_of(tmp_path):
    rules = [fb.Rule(kind=kind, weight="int8", input="int8 static sym") for kind in ("conv", "linear")]
    result = fb.quantize(model(), fb.Recipe(rules), to="ort-cpu", calibration=batches())
    # Behind a Relu the middle code stands for 0, so that onnxruntime leaves the convolution before it in float.
    result.model.values["b"] = result.model.layers["stem"].activations.input
    with pytest.warns(FewbitWarning, match="stem stayed float: behind its Relu the code 0 stands for 0"):
        result.save(tmp_path / "net.onnx")


@pytest.mark.parametrize("scheme", ["int4 g4", "int4 channel", "int8 channel", "int2 g4 asym"])
def test_weights_alone_are_written(scheme, tmp_path):
    result = fb.quantize(model(), fb.Recipe([fb.Rule("fc", weight=scheme)]), to="ort-cpu")
    path = result.save(tmp_path / "net.onnx")
    # Where there is one scale a channel, onnxruntime may round the input to int8 by blocks: 1/255 of its range.
    assert apart(path, result, batches(1)[0]) < (0.02 if "channel" in scheme else 1e-5)


def test_dynamic_inputs_of_a_preset_are_fitted_to_the_runtime_and_refused_where_there_are_none():
    made = fb.plan(model(), "w8a8", to="ort-cpu")
    assert "input 'int8 token asym' -> 'int8 tensor asym', the nearest that ort-cpu has" in made.adaptations[0]
    with pytest.raises(PlanError, match="tensorrt takes no ranges of the moment"):
        fb.quantize(model(), "w8a8", to="tensorrt")


def test_what_cannot_be_written_says_why(tmp_path):
    result = fb.quantize(model(), "w8a16", to="ort-cpu")
    with pytest.raises(RecipeError, match=r"ort-cpu writes a file that ends in \.onnx"):
        result.save(tmp_path / "folder", runtime="ort-cpu")
    with pytest.raises(RecipeError, match="exclude each other"):
        result.save(tmp_path / "net.onnx", "compressed-tensors", runtime="ort-cpu")
    with pytest.raises(RecipeError, match="runtime 'ort-gpu'"):
        result.save(tmp_path / "net.onnx", runtime="ort-gpu")
    path = result.save(tmp_path / "net.onnx")
    with pytest.raises(CheckpointError, match="exists"):
        result.save(path)
    assert result.save(path, overwrite=True) == path
    unseen = replace(fb.quantize(model(), "w8a8-static", calibration=batches()), batches=())
    with pytest.raises(CalibrationError, match="there is no calibration data"):
        unseen.save(tmp_path / "other.onnx", runtime="ort-cpu")
