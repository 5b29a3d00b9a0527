"""Means over all positions become GlobalAveragePool, and no other mean does."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

import fewbit as fb
from fewbit.onnx_graph.constants import fold_constants
from fewbit.onnx_graph.pooling import pool_means

AXES = {"axes": np.asarray([-1, -2])}


def pooled(onnx_model, body, *, constants=AXES, opset=18, output="float[a, b] y", given="float[n, 3, 4, 5] x"):
    """Return a graph before and after, as protobufs."""
    proto = onnx_model(f"({given}) => ({output}) {{ {body} }}", constants, opset=opset)
    model = ir.from_proto(proto)
    fold_constants(model)
    pool_means(model)
    return proto, ir.to_proto(model)


def kinds(proto):
    return [node.op_type for node in proto.graph.node]


def ran(proto, x):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == ["y"]
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    ("body", "opset", "output", "found"),
    [
        ("y = ReduceMean<keepdims=0>(x, axes)", 18, "float[a, b] y", ["GlobalAveragePool", "Flatten"]),
        ("y = ReduceMean(x, axes)", 18, "float[a, b, c, d] y", ["GlobalAveragePool"]),
        ("y = ReduceMean<axes=[2, 3], keepdims=0>(x)", 13, "float[a, b] y", ["GlobalAveragePool", "Flatten"]),
        (
            "r = Relu(x)  m = ReduceMean<keepdims=0>(r, axes)  y = Neg(m)",
            18,
            "float[a, b] y",
            ["Relu", "GlobalAveragePool", "Flatten", "Neg"],
        ),
    ],
)
def test_a_mean_over_all_positions_is_pooled_and_the_output_stays(onnx_model, body, opset, output, found):
    before, after = pooled(onnx_model, body, constants=AXES if opset > 13 else {}, opset=opset, output=output)
    assert kinds(after) == found
    onnx.checker.check_model(after, full_check=True)
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5)).astype(np.float32)
    # Sums of twenty numbers in another order.
    assert np.allclose(ran(after, x), ran(before, x), rtol=0, atol=1e-6)


def test_the_axes_behind_a_convolution_are_those_of_its_kernel(onnx_model):
    body = "c = Conv(x, w)  r = Relu(c)  y = ReduceMean<keepdims=0>(r, axes)"
    _, after = pooled(onnx_model, body, constants={**AXES, "w": (3, 3, 1, 1)})
    assert kinds(after) == ["Conv", "Relu", "GlobalAveragePool", "Flatten"]


@pytest.mark.parametrize(
    ("body", "axes"),
    [
        ("y = ReduceMean<keepdims=0>(x, axes)", [1, 2]),  # channels among them
        ("y = ReduceMean<keepdims=0>(x, axes)", [3]),  # a row of a picture
        ("s = Softsign(x)  t = Reshape(s, shape)  y = ReduceMean<keepdims=0>(t, axes)", [-1, -2]),  # how many axes?
        ("y = ReduceMax<keepdims=0>(x, axes)", [2, 3]),
    ],
)
def test_other_means_stay(onnx_model, body, axes):
    constants = {"axes": np.asarray(axes), "shape": np.asarray([0, 0, 5, 4])}
    output = "float[a, b, c] y" if axes == [3] else "float[a, b] y"
    before, after = pooled(onnx_model, body, constants=constants, output=output)
    assert kinds(after) == kinds(before)


@pytest.mark.parametrize("shape", ["n, 3, 4", "n, 4"])
def test_the_mean_of_a_norm_over_channels_stays(onnx_model, shape):
    body = "m = ReduceMean(x, axes)  y = Sub(x, m)"
    constants = {"axes": np.asarray([-1])}
    before, after = pooled(onnx_model, body, constants=constants, given=f"float[{shape}] x", output=f"float[{shape}] y")
    assert kinds(after) == kinds(before) == ["ReduceMean", "Sub"]


def test_whole_numbers_are_not_pooled(onnx_model):
    given, output = "int32[n, 3, 4, 5] x", "int32[a, b] y"
    _, after = pooled(onnx_model, "y = ReduceMean<keepdims=0>(x, axes)", given=given, output=output)
    assert kinds(after) == ["ReduceMean"]


def test_onnxruntime_runs_a_head_that_torch_exported_in_integers(onnx_model, tmp_path):
    text = """(float[n, 3, 8, 8] x) => (float[n, 5] y) { c = Conv(x, "c.weight", "c.bias")  r = Relu(c)
        m = ReduceMean<keepdims=0>(r, axes)  y = Gemm<transB=1>(m, "d.weight", "d.bias") }"""
    shapes = {"c.weight": (8, 3, 3, 3), "c.bias": (8,), "d.weight": (5, 8), "d.bias": (5,), **AXES}
    batches = [np.random.default_rng(n).normal(size=(2, 3, 8, 8)).astype(np.float32) for n in range(3)]
    result = fb.quantize(onnx_model(text, shapes, opset=18), "w8a8-static", to="ort-cpu", calibration=batches)
    path, optimized = result.save(tmp_path / "m.onnx"), tmp_path / "optimized.onnx"
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath, options.log_severity_level = str(optimized), 4
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    assert {"QLinearConv", "QLinearGlobalAveragePool", "QGemm"} <= set(kinds(onnx.load(optimized)))
    (made,), (expected,) = session.run(None, {"x": batches[0]}), result.run(batches[0]).values()
    assert np.abs(made - expected).max() < 0.02 * np.abs(expected).max()  # a code that lies amid two
