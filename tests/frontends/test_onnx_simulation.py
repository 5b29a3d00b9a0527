"""A quantized graph as it runs in memory, against NumPy on what the codes stand for."""

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from fewbit.activation import Activation
from fewbit.errors import CalibrationError, SourceError
from fewbit.frontends.onnx.frontend import OnnxFrontend
from fewbit.frontends.onnx.simulation import Simulation
from fewbit.interfaces import Activations
from fewbit.onnx_graph.live import OnnxModel
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_input_scheme, parse_scheme

FRONTEND = OnnxFrontend()


def live(model):
    return OnnxModel.of(ir.from_proto(model), "test")


def static(notation, scale, zero=None):
    scheme = parse_input_scheme(notation).stored_as("float32")
    shift = None if zero is None else np.asarray(zero, np.float32)
    return Activation(scheme=scheme, scale=np.asarray(scale, np.float32), zero_point=shift)


def dynamic(notation):
    return Activation(scheme=parse_input_scheme(notation).stored_as("float32"))


def install(model, notation="int8 channel", **activations):
    """Quantize every layer of `model`, and return the weights as they are then."""
    for layer in FRONTEND.layers(model):
        qtensor = quantize(FRONTEND.weight(model, layer), parse_scheme(notation))
        FRONTEND.replacement(model, layer, qtensor, Activations(**activations)).install()
    return {name: own.qtensor.dequantize() for name, own in model.layers.items()}


def outputs(proto, feeds):
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, feeds)


MLP = """(float[n, 8] x) => (float[n, 4] y) {
    h = Gemm<transB=1>(x, "a.weight", "a.bias")
    r = Relu(h)
    m = MatMul(r, "b.weight")
    y = Add(m, "b.bias")
}"""
SHAPES = {"a.weight": (16, 8), "a.bias": (16,), "b.weight": (16, 4), "b.bias": (4,)}


@pytest.mark.parametrize(
    "rounding",
    [None, static("int8 static", 0.03, 3), dynamic("int8"), dynamic("e4m3 tensor"), static("e4m3 static", 0.01)],
)
def test_a_layer_computes_its_float_operator_on_the_dequantized_weight_and_the_rounded_input(onnx_model, rounding):
    proto = onnx_model(MLP, SHAPES)
    numbers = {own.name: np.asarray(ir.from_proto(own).numpy()) for own in proto.graph.initializer}
    model = live(proto)
    weights = install(model, input=rounding)
    x = np.random.default_rng(3).normal(size=(6, 8)).astype(np.float32)
    rounded = rounding.rounded if rounding else lambda values: values
    hidden = np.maximum(rounded(x) @ weights["a"].T + numbers["a.bias"], 0)
    expected = rounded(hidden) @ weights["b"].T + numbers["b.bias"]
    found = FRONTEND.run(model, x)["y"]
    # Sums of 16 products in another order; where one moves a tie, a whole step of the input would move.
    assert np.allclose(found, expected, rtol=0, atol=2e-6)
    # The control: the float model is further away than that.
    assert np.abs(outputs(proto, {"x": x})[0] - expected).max() > 1e-3


def test_the_output_of_a_layer_is_rounded_behind_a_bias_of_its_own_node(onnx_model):
    model = live(onnx_model(MLP, SHAPES))
    step = 0.25
    install(model, output=static("int8 sym static", step))
    found = FRONTEND.run(model, np.random.default_rng(3).normal(size=(6, 8)).astype(np.float32))["y"]
    assert np.array_equal(found, np.round(found / step) * step)
    assert len(np.unique(found)) > 3


def test_further_values_are_rounded_by_name_inputs_of_the_model_among_them(onnx_model):
    model = live(onnx_model(MLP, SHAPES))
    x = np.random.default_rng(3).normal(size=(6, 8)).astype(np.float32)
    for name in ("x", "r", "y"):
        model.values[name] = static("int8 static", 0.125, 2)
    rounded = model.values["x"].rounded
    weights = {own.layer.name: FRONTEND.weight(model, own.layer) for own in model.found.values()}
    bias = {name: model.graph.graph.initializers[f"{name}.bias"].const_value.numpy() for name in "ab"}
    hidden = rounded(np.maximum(rounded(x) @ weights["a"].T + bias["a"], 0))
    expected = rounded(hidden @ weights["b"].T + bias["b"])
    assert np.array_equal(FRONTEND.run(model, x)["y"], expected)  # no sum is near a tie
    model.values.clear()
    assert not np.array_equal(FRONTEND.run(model, x)["y"], expected)


def test_a_bias_in_int32_is_added_where_the_float_one_was(onnx_model):
    from fewbit.integer_bias import IntegerBias

    model = live(onnx_model(MLP, SHAPES))
    scheme = parse_scheme("int8 channel")
    biases = {name: IntegerBias(codes=np.arange(size, dtype=np.int32), scale=np.full(size, 0.25, np.float32))
              for name, size in {"a": 16, "b": 4}.items()}  # fmt: skip
    for layer in FRONTEND.layers(model):
        assert layer.bias
        qtensor = quantize(FRONTEND.weight(model, layer), scheme)
        FRONTEND.replacement(model, layer, qtensor, None, biases[layer.name]).install()
    found = FRONTEND.run(model, np.zeros((1, 8), np.float32))["y"]
    hidden = biases["a"].dequantize() @ model.layers["b"].qtensor.dequantize().T
    assert np.allclose(found, hidden + biases["b"].dequantize(), rtol=0, atol=2e-6)  # sums of 16


def test_installing_and_restoring_show_in_the_next_run(onnx_model):
    proto = onnx_model(MLP, SHAPES)
    model = live(proto)
    x = np.ones((1, 8), np.float32)
    [before] = outputs(proto, {"x": x})
    install(model, "int2 channel")
    assert not np.allclose(FRONTEND.run(model, x)["y"], before, atol=1e-2)
    model.layers.clear()
    assert np.allclose(FRONTEND.run(model, x)["y"], before, rtol=0, atol=1e-6)
    assert len(model.ready) == 2


CONVOLUTIONS = """(float[n, 4, 7, 7] x) => (float[n, 6, 12, 12] y) {
    a = Conv<pads=[1, 1, 1, 1], group=2>(x, "a.weight", "a.bias")
    r = Relu(a)
    y = ConvTranspose<strides=[2, 2], pads=[1, 1, 1, 1], group=2>(r, "t.weight")
}"""
KERNELS = {"a.weight": (8, 2, 3, 3), "a.bias": (8,), "t.weight": (8, 3, 2, 2)}


@pytest.mark.parametrize("opset", [13, 17, 21])
def test_grouped_and_transposed_convolutions_run_on_their_rounded_weights(onnx_model, opset):
    proto = onnx_model(CONVOLUTIONS, KERNELS, opset=opset)
    model = live(proto)
    weights = install(model)
    x = np.random.default_rng(3).normal(size=(2, 4, 7, 7)).astype(np.float32)
    # The oracle: the same file with the rounded weights written into it.
    for own in proto.graph.initializer:
        name = own.name.removesuffix(".weight")
        if name in weights:
            stored = model.found[name].arrangement.stored(weights[name])
            own.raw_data = np.ascontiguousarray(stored).tobytes()
    assert np.array_equal(FRONTEND.run(model, x)["y"], outputs(proto, {"x": x})[0])


BRANCH = """(float[n, 8] x, bool deep) => (float[n, 8] y) {
    s = MatMul(x, "s.weight")
    y = If (deep) <
        then_branch = deeper () => (float[n, 8] z) { m = MatMul(s, "inner.weight")  z = Add(m, x) },
        else_branch = flat () => (float[n, 8] z2) { z2 = Relu(s) }
    >
}"""


def test_layers_in_a_branch_run_quantized_and_read_what_is_rounded_outside(onnx_model):
    model = live(onnx_model(BRANCH, {"s.weight": (8, 8), "inner.weight": (8, 8)}))
    assert list(model.found) == ["s", "inner"]
    weights = install(model, "int3 channel", input=static("int8 static", 0.05, 1))
    x = np.random.default_rng(3).normal(size=(5, 8)).astype(np.float32)
    rounded = static("int8 static", 0.05, 1).rounded
    s = rounded(x) @ weights["s"].T
    found = FRONTEND.run(model, {"x": x, "deep": np.asarray(True)})["y"]
    assert np.allclose(found, rounded(s) @ weights["inner"].T + x, rtol=0, atol=1e-6)
    found = FRONTEND.run(model, {"x": x, "deep": np.asarray(False)})["y"]
    assert np.allclose(found, np.maximum(s, 0), rtol=0, atol=1e-6)
    model.values["x"] = static("int8 static", 0.5, 0)
    coarse = static("int8 static", 0.5, 0).rounded(x)
    found = FRONTEND.run(model, {"x": x, "deep": np.asarray(True)})["y"]
    inner = rounded(rounded(coarse) @ weights["s"].T) @ weights["inner"].T
    assert np.allclose(found, inner + coarse, rtol=0, atol=1e-6)


def test_float16_and_double_models_keep_their_types(onnx_model):
    for name, dtype in {"float16": np.float16, "double": np.float64}.items():
        random = np.random.default_rng(0)
        weight = (random.normal(size=(8, 4)) / 3).astype(dtype)
        text = f'({name}[n, 8] x) => ({name}[n, 4] y) {{ y = MatMul(x, "w.weight") }}'
        model = live(onnx_model(text, {"w.weight": weight}, opset=13))
        weights = install(model, input=dynamic("int8"))
        x = random.normal(size=(5, 8)).astype(dtype)
        found = FRONTEND.run(model, x)["y"]
        assert found.dtype == dtype
        expected = dynamic("int8").rounded(x.astype(np.float32)) @ weights["w"].T
        # Of float16 the rounded input, the weight and the sum are rounded once each.
        assert np.allclose(found, expected, rtol=0, atol=4e-3 if name == "float16" else 1e-6)


def test_embeddings_are_looked_up_in_their_rounded_rows(onnx_model):
    model = live(onnx_model('(int64[n] i) => (float[n, 8] y) { y = Gather("t.weight", i) }', {"t.weight": (20, 8)}))
    weights = install(model)
    indices = np.asarray([3, 19, 0])
    assert np.array_equal(FRONTEND.run(model, indices)["y"], weights["t"][indices])


def test_no_operator_of_a_simulation_computes_with_integers(onnx_model, monkeypatch):
    seen = []
    monkeypatch.setattr("fewbit.frontends.onnx.simulation.Session.of", lambda proto, numbers, name: seen.append(proto))
    model = live(onnx_model(MLP, SHAPES))
    install(model, input=dynamic("int8"), output=static("int8 static", 0.1, 0))
    Simulation(model).whole()
    operators = {node.op_type for node in seen[0].graph.node}
    assert not operators & {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger"}
    assert {"Round", "Clip", "ReduceMax"} <= operators


def test_an_operator_that_onnxruntime_lacks_is_named(onnx_model):
    import onnx

    proto = onnx_model('(float[n, 8] x) => (float[n, 4] y) { y = MatMul(x, "w.weight") }', {"w.weight": (8, 4)})
    proto.graph.node.append(onnx.helper.make_node("Quux", ["y"], ["z"], domain="my.own"))
    proto.opset_import.append(onnx.helper.make_opsetid("my.own", 1))
    proto.graph.output[0].name = "z"
    with pytest.raises(SourceError, match=r"onnxruntime cannot run test: .*Quux"):
        FRONTEND.run(live(proto), np.zeros((1, 8), np.float32))


def test_data_that_fit_the_inputs_and_not_the_graph_are_refused(onnx_model):
    proto = onnx_model("(float[n, m] x) => (float[n, 4] y) { y = MatMul(x, w) }", {"w": (8, 4)})
    with pytest.raises(CalibrationError, match=r"onnxruntime fails to run test on this batch: .*dimension"):
        FRONTEND.run(live(proto), np.zeros((2, 7), np.float32))
