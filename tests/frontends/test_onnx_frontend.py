"""The `Frontend` contract on graphs."""

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from fewbit.activation import Activation
from fewbit.errors import NonFiniteError, RecipeError
from fewbit.frontends.onnx.frontend import OnnxFrontend
from fewbit.interfaces import Activations, frontend_of
from fewbit.onnx_graph.live import OnnxModel
from fewbit.qtensor import QTensor, quantize
from fewbit.schemes.notation import parse_input_scheme, parse_scheme

FRONTEND = OnnxFrontend()
TIED = """(int64[n] ids) => (float[n, 300] y) {
    h = Gather("words.weight", ids)
    r = MatMul(h, "fc.weight")
    b = Add(r, "fc.bias")
    w = Transpose<perm=[1, 0]>("words.weight")
    y = MatMul(b, w)
}"""
SHAPES = {"words.weight": (300, 16), "fc.weight": (16, 16), "fc.bias": (16,)}


def live(model):
    return OnnxModel.of(ir.from_proto(model), "test")


def test_it_is_found_by_its_name():
    assert isinstance(frontend_of("onnx"), OnnxFrontend)


def test_constants_are_told_once_and_stored_under_every_name(onnx_model):
    model = live(onnx_model(TIED, SHAPES))
    told = {tensor.name: (tensor.dtype, tensor.shape) for tensor in FRONTEND.floats(model)}
    embedding, fc, head = FRONTEND.layers(model)
    assert told == {
        f"{embedding.name}.weight": ("float32", (300, 16)),
        f"{fc.name}.weight": ("float32", (16, 16)),
        "fc.bias": ("float32", (16,)),
    }
    stored = dict(FRONTEND.tensors(model, "float16"))
    assert stored[f"{head.name}.weight"].shape == (16, 300)
    assert {array.dtype for array in stored.values()} == {np.dtype(np.float16)}
    assert next(iter(dict(FRONTEND.tensors(model, "bfloat16")).values())).dtype == ml_dtypes.bfloat16


def test_installed_layers_are_stored_as_their_codes_behind_their_static_input(onnx_model):
    model = live(onnx_model(TIED, SHAPES))
    layer = FRONTEND.layers(model)[1]
    scheme = parse_input_scheme("int8 static").stored_as("float32")
    given = Activation(scheme=scheme, scale=np.float32(0.1), zero_point=np.float32(2))
    qtensor = quantize(FRONTEND.weight(model, layer), parse_scheme("int8"))
    replacement = FRONTEND.replacement(model, layer, qtensor, Activations(input=given))
    assert replacement.qtensor is qtensor
    replacement.install()
    stored = list(FRONTEND.tensors(model, "float32"))
    assert [type(value) for name, value in stored if name == "fc"] == [Activation, QTensor]
    assert "fc.weight" not in dict(stored)
    replacement.restore()
    assert "fc.weight" in dict(FRONTEND.tensors(model, "float32"))


def test_weights_are_float32_rows(onnx_model):
    for name, dtype in {"float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "double": np.float64}.items():
        weight = np.random.default_rng(0).normal(size=(8, 4)).astype(dtype)
        text = f'({name}[n, 8] x) => ({name}[n, 4] y) {{ y = MatMul(x, "l.weight") }}'
        model = live(onnx_model(text, {"l.weight": weight}))
        found = FRONTEND.weight(model, FRONTEND.layers(model)[0])
        assert found.dtype == np.float32
        assert np.array_equal(found, weight.T.astype(np.float32))


@pytest.mark.parametrize(("value", "message"), [
    (np.nan, "l: 1 of 32 weights are NaN or infinite; repair or keep it"),
    (1e300, "l: 1 of 32 weights are NaN or infinite"),
    (1e38, r"l: a weight of magnitude 1e\+38 would overflow float32 arithmetic"),
])  # fmt: skip
def test_weights_that_float32_cannot_work_with_are_refused_by_name(onnx_model, value, message):
    weight = np.ones((8, 4))
    weight[1, 2] = value
    model = live(onnx_model('(double[n, 8] x) => (double[n, 4] y) { y = MatMul(x, "l.weight") }', {"l.weight": weight}))
    with pytest.raises(NonFiniteError, match=message):
        FRONTEND.weight(model, FRONTEND.layers(model)[0])


def test_only_the_cpu_is_there(onnx_model):
    model = live(onnx_model(TIED, SHAPES))
    assert FRONTEND.place(model, "cpu") is model
    with pytest.raises(RecipeError, match="device 'cuda:0' cannot be used"):
        FRONTEND.place(model, "cuda:0")


def test_extremes_of_all_float_values_leave_out_what_is_infinite(onnx_model):
    text = """(float[n, 3] x, int64[n] k) => (float[n, 3] y) {
        twice = Add(x, x)
        y = Mul(twice, mask)
    }"""
    mask = np.asarray([1, -np.inf, 2], np.float32)
    model = live(onnx_model(text, {"mask": mask}))
    batches = [{"x": np.asarray([[1, 2, own]], np.float32), "k": np.zeros(1, np.int64)} for own in (3, -5)]
    found = FRONTEND.value_extremes(model, batches)
    assert found == {"x": (-5, 3), "twice": (-10, 6), "y": (-20, 12)}
