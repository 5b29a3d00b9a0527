"""Float16 models, layers in branches, biases that overflow, weights stored unsigned, and what is refused."""

from dataclasses import replace

import numpy as np
import onnx
import pytest

from fewbit.activation import Activation
from fewbit.checkpoints.onnx import bias
from fewbit.errors import CheckpointError
from fewbit.runtimes import runtime_named
from fewbit.schemes.notation import parse_input_scheme

HALF = '<ir_version: 8, opset_import: ["" : 17]> g (float16[5,64] x) => (float16[5,N] y) { %s }'
ROWS = '<ir_version: 8, opset_import: ["" : 17]> g (float[5,64] x) => (float[5,N] y) { %s }'
ORT = runtime_named("ort-cpu")


def first(made):
    return next(iter(made.values()))


def rounded_to_half(own):
    """Give scales the type of a float16 model, as the plan does."""
    for name, layer in own.model.layers.items():
        given = layer.activations.input
        if given is not None and given.scale is not None:
            half = replace(given, scale=np.float32(np.float16(given.scale)))
            own.model.layers[name] = replace(layer, activations=replace(layer.activations, input=half))
        scale = layer.qtensor.scale.astype(np.float16).astype(np.float32)
        own.model.layers[name] = replace(own.model.layers[name], qtensor=replace(layer.qtensor, scale=scale))
    return own


@pytest.mark.parametrize("given", ["int8 static", "int8 tensor", None])
@pytest.mark.parametrize("weight", ["int8", "int4 channel"])
def test_float16_models_keep_their_type_around_integers(case, run, error, tmp_path, weight, given):
    own = case(HALF % "y = Gemm(x,w,b)", dtype=np.float16, w=(64, 7), b=(7,))
    rounded_to_half(own.quantize(ORT, weight=weight, given=given))
    written = own.write(ORT, tmp_path / "m.onnx")
    assert written.opset == (19 if given == "int8 static" else 17)
    made = first(run(tmp_path / "m.onnx", own.feeds))
    assert made.dtype == np.float16
    # float16 has 11 bits, and level 4 of packed int8 weights rounds inputs.
    assert error(made, own.simulated()) < (2e-2 if given is None else 2e-3)
    own.damaged().write(ORT, tmp_path / "wrong.onnx")
    assert error(first(run(tmp_path / "wrong.onnx", own.feeds)), made) > 0.3


def test_scales_that_float16_does_not_hold_are_refused_with_the_remedy(case, tmp_path):
    own = case(HALF % "y = MatMul(x,w)", dtype=np.float16, w=(64, 7)).quantize(ORT)
    with pytest.raises(CheckpointError, match="float16 does not hold its scales exactly"):
        own.write(ORT, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("given", ["int8 static", "int8 tensor", None])
@pytest.mark.parametrize("branch", [True, False])
def test_layers_in_branches_are_written_where_they_are(case, run, error, tmp_path, given, branch):
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[5,64] x, bool c) => (float[5,N] y) {
        r = Relu(x)
        y = If(c) <
            then_branch = a () => (float[5,7] i) { i = MatMul(r, w) },
            else_branch = b () => (float[5,7] j) { k = MatMul(r, v) j = Neg(k) }
        >
    }"""
    own = case(text, w=(64, 7), v=(64, 7))
    own.feeds["c"] = np.asarray(branch)
    own.quantize(ORT, weight="int4 g32" if given is None else "int8", given=given)
    own.write(ORT, tmp_path / "m.onnx")
    own.model.layers = dict(own.model.layers)
    name, sign = ("MatMul:i", 1.0) if branch else ("MatMul:k", -1.0)
    layer = own.model.layers[name]
    data = np.maximum(own.feeds["x"], 0)
    data = data if given is None else layer.activations.input.rounded(data)
    expected = sign * data @ np.asarray(layer.qtensor.dequantize()).T
    assert error(run(tmp_path / "m.onnx", own.feeds)["y"], expected) < 1e-5
    own.damaged().write(ORT, tmp_path / "wrong.onnx")
    wrong = error(run(tmp_path / "wrong.onnx", own.feeds)["y"], expected)
    assert wrong > 0.3 if branch else wrong < 1e-5  # the first layer is in the first branch


@pytest.mark.parametrize("weight", ["int8", "int8 tensor"])
@pytest.mark.parametrize("nodes", ["y = Gemm(x,w,b)", "m = MatMul(x,w) y = Add(m,b)"])
def test_a_bias_beyond_int32_widens_the_scale_of_its_row_and_is_reported(case, run, error, tmp_path, nodes, weight):
    draw = np.random.default_rng(0)
    table, added = draw.normal(size=(64, 7)).astype(np.float32), draw.normal(size=7).astype(np.float32)
    table[:, 2] *= 1e-7
    if weight == "int8 tensor":
        table *= 1e-7
    added[2] = 3.0
    own = case(ROWS % nodes, w=table, b=added).quantize(ORT, weight=weight)
    written = own.write(ORT, tmp_path / "m.onnx")
    assert len(written.notes) == 1
    assert "grew so that their biases fit int32" in written.notes[0]
    made = first(run(tmp_path / "m.onnx", own.feeds))
    # The row that grew holds next to nothing but its bias.
    assert np.abs(made[:, 2] - 3.0).max() < 1e-4
    if weight == "int8":
        keep = np.arange(7) != 2
        assert error(made[:, keep], own.simulated()[:, keep]) < 1e-4


def test_unsigned_weights_are_the_same_numbers_in_other_bytes(case, run, tmp_path):
    text = ROWS % "h = MatMul(x,w) r = Relu(h) y = Gemm(r,v,b)"
    own = case(text, w=(64, 32), v=(32, 7), b=(7,)).quantize(ORT)
    own.write(ORT, tmp_path / "signed.onnx")
    own.write(ORT, tmp_path / "unsigned.onnx", unsigned=["Gemm:y"])
    kinds = {tensor.name: tensor.data_type for tensor in onnx.load(tmp_path / "unsigned.onnx").graph.initializer}
    assert kinds["Gemm:y.codes"] == onnx.TensorProto.UINT8
    assert kinds["MatMul:h.codes"] == onnx.TensorProto.INT8
    made = [first(run(tmp_path / f"{name}.onnx", own.feeds)) for name in ("signed", "unsigned")]
    np.testing.assert_array_equal(*made)


def test_what_a_runtime_does_not_take_is_refused_before_anything_is_written(case, tmp_path):
    own = case(ROWS % "y = MatMul(x,w)", w=(64, 7)).quantize(ORT)
    with pytest.raises(
        CheckpointError, match="MatMul:y: tensorrt takes no zero points, and here is 'int8 tensor asym static'"
    ):
        own.write(runtime_named("tensorrt"), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_value_that_the_graph_lacks_is_named(case, tmp_path):
    own = case(ROWS % "y = MatMul(x,w)", w=(64, 7)).quantize(ORT)
    own.model.values["nowhere"] = Activation(scheme=parse_input_scheme("int8 static"), scale=np.float32(1))
    with pytest.raises(CheckpointError, match="no value 'nowhere' to round"):
        own.write(ORT, tmp_path / "m.onnx")


def test_an_output_and_the_relu_behind_it_are_rounded_one_after_the_other(case, run, error, tmp_path):
    """onnxruntime would make one pair of two in a row, so the Relu stays between them."""
    text = ROWS % "h = Gemm(x,w,b) r = Relu(h) y = Gemm(r,v,c)"
    own = case(text, w=(64, 32), b=(32,), v=(32, 7), c=(7,)).quantize(ORT)
    coarse = Activation(scheme=parse_input_scheme("int8 static sym"), scale=np.float32(1.0))
    layer = own.model.layers["Gemm:h"]
    own.model.layers["Gemm:h"] = replace(layer, activations=replace(layer.activations, output=coarse))
    own.write(ORT, tmp_path / "m.onnx")
    assert [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node].count("Relu") == 1
    assert error(first(run(tmp_path / "m.onnx", own.feeds)), own.simulated()) < 3e-3
    assert error(own.simulated(), own.float()) > 0.03


def test_float16_values_without_a_declared_type_get_scales_of_float16(case, run, tmp_path):
    own = case(
        HALF % "h = Gemm(x,w,b) r = Relu(h) y = Gemm(r,v,c)", dtype=np.float16, w=(64, 8), b=(8,), v=(8, 7), c=(7,)
    )
    own.quantize(ORT)
    assert own.model.values
    own.model.values = {
        name: replace(value, scale=np.float32(np.float16(value.scale))) for name, value in own.model.values.items()
    }
    rounded_to_half(own).write(ORT, tmp_path / "m.onnx")
    assert np.abs(first(run(tmp_path / "m.onnx", own.feeds)) - own.simulated()).max() < 0.3


def test_an_input_that_is_rounded_as_a_value_is_not_rounded_once_more(case, run, error, tmp_path):
    own = case(ROWS % "h = Tanh(x) y = MatMul(h,w)", w=(64, 7)).quantize(ORT)
    coarse = Activation(scheme=parse_input_scheme("int8 static sym"), scale=np.float32(0.25))
    own.model.values["h"] = coarse
    written = own.write(ORT, tmp_path / "m.onnx")
    assert written.notes == ("MatMul:y: its input is rounded where it is made, and not once more by its own range",)
    assert [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node].count("QuantizeLinear") == 1
    layer = own.model.layers["MatMul:y"]
    own.model.layers["MatMul:y"] = replace(layer, activations=replace(layer.activations, input=coarse))
    assert error(first(run(tmp_path / "m.onnx", own.feeds)), own.simulated()) < 1e-6
    assert error(first(run(tmp_path / "m.onnx", own.feeds)), own.float()) > 0.05


@pytest.mark.parametrize(("largest", "holds"), [(None, True), ((1 << 31) - 1, False)])
def test_a_bias_at_the_end_of_int32_leaves_no_room_for_the_products(case, run, tmp_path, monkeypatch, largest, holds):
    if largest is not None:
        monkeypatch.setattr(bias, "LARGEST", largest)
    draw = np.random.default_rng(0)
    table, added = draw.normal(size=(64, 7)).astype(np.float32), draw.normal(size=7).astype(np.float32)
    table[:, 2] *= 1e-7
    added[2] = 3.0
    own = case(ROWS % "y = Gemm(x,w,b)", w=table, b=added).quantize(ORT)
    own.write(ORT, tmp_path / "m.onnx")
    dead = first(run(tmp_path / "m.onnx", own.feeds))[:, 2]
    # The sum wraps around: 3 becomes -3.
    assert bool(np.all(np.abs(dead - 3.0) < 1e-4)) == holds
