"""The operators that round inputs in a graph, against `Activation.rounded` in NumPy: equal, not close."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fewbit.activation import Activation
from fewbit.frontends.onnx.nodes import Nodes
from fewbit.frontends.onnx.rounding import Place, round_value, rounding_problem
from fewbit.frontends.onnx.session import Session
from fewbit.schemes.notation import parse_input_scheme
from fewbit.statistics.extremes import Extremes

STATIC = [
    "int8 static", "int8 sym static", "int8 narrow sym static", "uint8 static", "int4 static", "int16 static",
    "e4m3 static", "e5m2 static", "e2m1 static", "e4m3fnuz static", "int8 static channel", "e4m3 static channel",
]  # fmt: skip
DYNAMIC = [
    "int8", "int8 sym", "uint8", "int8 tensor", "int8 tensor sym", "int4", "int8 g8", "int8 g8 sym",
    "e4m3", "e5m2", "e4m3 tensor", "e4m3 g8", "e2m1",
]  # fmt: skip
CASTS = ["fp16", "bf16"]


def session_for(activation, place=None, opset=17, dtype=np.float32):
    nodes = Nodes(opset)
    result = round_value(nodes, "x", activation, place or Place())
    kind = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    graph = onnx.GraphProto(name="rounding", node=nodes.protos)
    graph.input.append(onnx.helper.make_tensor_value_info("x", kind, None))
    graph.output.append(onnx.ValueInfoProto(name=result))
    imports = [onnx.helper.make_opsetid("", opset)]
    session = Session.of(onnx.ModelProto(ir_version=8, graph=graph, opset_import=imports), nodes.numbers, "test")
    return lambda values: session.run({"x": values})[result]


def calibrated(notation, values):
    scheme = parse_input_scheme(notation)
    seen = Extremes.init(values.shape[-1], values)
    seen.update(values)
    return Activation.calibrated(scheme.stored_as("float32"), seen)


def hard_values():
    """Numbers of all sizes, beyond what was seen, and zeros of both signs, (64, 16)."""
    random = np.random.default_rng(5)
    values = random.normal(size=(64, 16)) * np.exp2(random.integers(-12, 12, size=(64, 1)))
    values[::7, 3] = 0.0
    values[1::7, 4] = -0.0
    values[2] = 0.0
    return values.astype(np.float32)


@pytest.mark.parametrize("notation", STATIC)
def test_a_static_rounding_in_a_graph_equals_the_one_in_numpy(notation):
    values = hard_values()
    activation = calibrated(notation, values[:32] / 3)
    assert np.array_equal(session_for(activation)(values), activation.rounded(values))


@pytest.mark.parametrize("notation", STATIC[:10])
def test_ties_levels_and_their_neighbours_are_rounded_alike(notation):
    scheme = parse_input_scheme(notation).stored_as("float32")
    # Whole, half and quarter codes times a scale that is a power of two are exact: every half is a tie.
    places = np.arange(-300, 300, 0.25) if "int" in notation else np.asarray(scheme.format.levels)
    middles = (places[:-1] + places[1:]) / 2
    exact = np.concatenate([places, middles, [scheme.format.levels[0] * 2, scheme.format.levels[-1] * 2]])
    near = np.nextafter(exact.astype(np.float32), np.float32(np.inf))
    values = (np.concatenate([exact, near, -near]) * 0.125).astype(np.float32)[None]
    zero = None if scheme.symmetric else np.asarray(3.0, np.float32)
    activation = Activation(scheme=scheme, scale=np.asarray(0.125, np.float32), zero_point=zero)
    assert np.array_equal(session_for(activation)(values), activation.rounded(values))


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("notation", DYNAMIC)
def test_a_dynamic_rounding_in_a_graph_equals_the_one_in_numpy(notation, opset):
    activation = Activation(scheme=parse_input_scheme(notation).stored_as("float32"))
    run = session_for(activation, opset=opset)
    values = hard_values()
    for part in (values, values.reshape(4, 16, 16), values[:1]):
        assert np.array_equal(run(part), activation.rounded(part))


@pytest.mark.parametrize("opset", [13, 18, 21])
@pytest.mark.parametrize("notation", CASTS)
def test_a_cast_in_a_graph_equals_the_one_in_numpy_and_saturates(notation, opset):
    activation = Activation(scheme=parse_input_scheme(notation))
    levels = np.array(activation.scheme.format.levels)
    middles = (levels[1::7] + levels[:-1:7]) / 2
    values = np.concatenate([levels[::7], middles, hard_values().ravel(), [1e38, -1e38, np.inf, -np.inf, 65_520.0]])
    values = values.astype(np.float32)
    values = values[(np.abs(values) >= 2.0**-126) | (values == 0)][None]  # float32 subnormals are casts' own business
    found = session_for(activation, opset=opset)(values)
    assert np.array_equal(found, activation.rounded(values))
    assert np.isfinite(found).all()


@pytest.mark.parametrize("notation", ["int8", "int8 sym", "e4m3"])
def test_a_token_of_what_a_convolution_is_given_is_a_sample(notation):
    activation = Activation(scheme=parse_input_scheme(notation).stored_as("float32"))
    values = hard_values().reshape(4, 16, 4, 4)
    expected = activation.rounded(values.reshape(4, -1)).reshape(values.shape)
    assert np.array_equal(session_for(activation, Place(spatial=2))(values), expected)
    # The control: rounded by rows of the last axis it would differ.
    assert not np.array_equal(activation.rounded(values), expected)


def test_static_channels_of_a_convolution_lie_before_its_spatial_axes():
    values = hard_values().reshape(4, 4, 8, 8)
    channels_last = np.moveaxis(values, 1, -1)
    activation = calibrated("int8 static channel", channels_last)
    expected = np.moveaxis(activation.rounded(channels_last), -1, 1)
    assert np.array_equal(session_for(activation, Place(spatial=2))(values), expected)


@pytest.mark.parametrize("notation", ["int8 static", "int8", "e4m3"])
def test_a_float16_value_is_rounded_in_float32_and_stays_float16(notation):
    values = np.random.default_rng(0).normal(size=(8, 16)).astype(np.float16)
    scheme = parse_input_scheme(notation).stored_as("float32")
    activation = calibrated(notation, values.astype(np.float32)) if scheme.static else Activation(scheme=scheme)
    found = session_for(activation, Place(ir.DataType.FLOAT16), dtype=np.float16)(values)
    assert found.dtype == np.float16
    assert np.array_equal(found, activation.rounded(values).astype(np.float16))


def test_what_a_graph_cannot_do_has_a_reason_and_all_else_has_none():
    for notation in itertools.chain(STATIC, DYNAMIC, CASTS):
        assert rounding_problem(parse_input_scheme(notation)) is None
    assert "does not search for its range" in rounding_problem(parse_input_scheme("int8 mse"))
    assert "cannot be rounded to nf4" in rounding_problem(parse_input_scheme("nf4 token"))
    assert "cannot be rounded to mxfp4" in rounding_problem(parse_input_scheme("mxfp4"))
    assert "cannot be rounded to nvfp4 static" in rounding_problem(parse_input_scheme("nvfp4 static"))
    assert "are float32, not float16" in rounding_problem(parse_input_scheme("int8").stored_as("float16"))
