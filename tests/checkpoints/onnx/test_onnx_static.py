"""Q/DQ files with fixed ranges: what onnxruntime computes from them is what the codes stand for."""

from dataclasses import replace

import numpy as np
import pytest

from fewbit.integer_bias import quantize_bias
from fewbit.runtimes import runtime_named

CONV = """<ir_version: 8, opset_import: ["" : 13]> g (float[2,4,9,9] x) => (float[2,N,H,W] y)
<float lo={0.0}, float hi={2.5}> {
    %s
}"""
ONE = {
    "conv": ("y = Conv<pads=[1,1,1,1]>(x,w,b)", {"w": (6, 4, 3, 3), "b": (6,)}),
    "conv, relu": ("c = Conv(x,w,b) y = Relu(c)", {"w": (6, 4, 3, 3), "b": (6,)}),
    "conv, clip": ("c = Conv(x,w,b) y = Clip(c,lo,hi)", {"w": (6, 4, 3, 3), "b": (6,)}),
    "conv, no bias": ("y = Conv(x,w)", {"w": (6, 4, 3, 3)}),
    "depthwise": ("y = Conv<group=4>(x,w,b)", {"w": (4, 1, 3, 3), "b": (4,)}),
    "transposed": ("y = ConvTranspose(x,w,b)", {"w": (4, 6, 3, 3), "b": (6,)}),
}
ROWS = """<ir_version: 8, opset_import: ["" : 13]> g (float[5,64] x) => (float[5,N] y) { %s }"""
ROWS_OF = {
    "gemm": ("y = Gemm(x,w,b)", {"w": (64, 7), "b": (7,)}),
    "gemm, transposed": ("y = Gemm<transB=1>(x,w,b)", {"w": (7, 64), "b": (7,)}),
    "gemm, alpha and beta": ("y = Gemm<alpha=0.5,beta=2.0>(x,w,b)", {"w": (64, 7), "b": (7,)}),
    "gemm, relu": ("g = Gemm<transB=1>(x,w,b) y = Relu(g)", {"w": (7, 64), "b": (7,)}),
    "matmul": ("y = MatMul(x,w)", {"w": (64, 7)}),
    "matmul, add": ("m = MatMul(x,w) y = Add(m,b)", {"w": (64, 7), "b": (7,)}),
    "matmul, transpose of an initializer": ("t = Transpose(w) y = MatMul(x,t)", {"w": (7, 64)}),
}
EVERY = {**{name: (CONV, *own) for name, own in ONE.items()}, **{name: (ROWS, *own) for name, own in ROWS_OF.items()}}
RUNTIMES = ["ort-cpu", "tensorrt", "migraphx", "openvino"]


def quantized(case, name, runtime, **schemes):
    text, nodes, shapes = EVERY[name]
    return case(text % nodes, **shapes).quantize(runtime, **schemes)


@pytest.mark.parametrize("name", ["conv", "gemm", "matmul, add"])
@pytest.mark.parametrize("word", RUNTIMES)
def test_biases_that_are_int32_already_stand_for_the_same_numbers(case, run, error, tmp_path, name, word):
    runtime = runtime_named(word)
    own = quantized(case, name, runtime, given="int8 static" if runtime.zero_points else "int8 static sym")
    layer, found = next(iter(own.model.layers.values())), next(iter(own.model.found.values()))
    coarse = np.float32(500.0)  # a unit so large that rounding shows
    bias = quantize_bias(found.bias_value.const_value.numpy(), coarse * layer.activations.input.scale, layer.qtensor)
    own.model.layers[found.layer.name] = replace(layer, bias=bias)
    own.write(runtime, tmp_path / "m.onnx")
    made = next(iter(run(tmp_path / "m.onnx", own.feeds).values()))
    assert error(made, own.simulated()) < bound(own, runtime)
    own.model.layers[found.layer.name] = layer
    assert error(made, own.simulated()) > 2 * bound(own, runtime)


def bound(own, runtime):
    """Return how far a file may be from the simulation."""
    if own.model.values:
        return 3e-3  # a sum on the edge of two codes may fall to either side: one output in a few hundred
    if runtime.bias == "int32":
        return 1e-4  # half a step of the bias, the product of two scales
    return 1e-6  # sums are exact in int32, and differ from those of float32 by its rounding


@pytest.mark.parametrize("name", EVERY)
@pytest.mark.parametrize("word", RUNTIMES)
def test_onnxruntime_computes_what_the_codes_stand_for(case, run, error, tmp_path, name, word):
    runtime = runtime_named(word)
    given = "int8 static" if runtime.zero_points else "int8 static sym"
    own = quantized(case, name, runtime, given=given)
    own.write(runtime, tmp_path / "m.onnx")
    made = next(iter(run(tmp_path / "m.onnx", own.feeds).values()))
    assert error(made, own.simulated()) < bound(own, runtime)
    own.damaged().write(runtime, tmp_path / "wrong.onnx")
    assert error(next(iter(run(tmp_path / "wrong.onnx", own.feeds).values())), made) > 0.3
