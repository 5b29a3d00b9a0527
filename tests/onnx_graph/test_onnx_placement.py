"""Which values are rounded between layers, by runtime: read off small graphs."""

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from onnx import numpy_helper, parser

from fewbit.interfaces import QuantizedLayer
from fewbit.onnx_graph.live import OnnxModel
from fewbit.onnx_graph.placement import place
from fewbit.runtimes import RUNTIMES, runtime_named
from fewbit.schemes.notation import parse_input_scheme, parse_scheme

#: Weights by name; every convolution is 1x1 on four channels.
CONV, ROWS = (4, 4, 1, 1), (4, 4)


def placed(nodes, runtime="ort-cpu", given="int8 static", weight="int8", only=None, shape="1,4,8,8"):
    head = f'<ir_version: 8, opset_import: ["" : 17]> g (float[{shape}] x) => (float[A] y)'
    proto = parser.parse_model(f"{head} <float lo={{0}}, float hi={{6}}> {{ {nodes} }}")
    used = {name for node in proto.graph.node for name in node.input}
    for name in sorted(used):
        if name[0] in "wmb" and name[1:].isdigit():
            own = np.ones({"w": CONV, "m": ROWS, "b": (4,)}[name[0]], np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(own, name))
    model = OnnxModel.of(ir.from_proto(proto), Path("case.onnx"))
    schemes = parse_scheme(weight), parse_input_scheme(given)
    quantized = [
        QuantizedLayer(own.layer, *schemes)
        for name, own in model.found.items()
        if only is None or own.output.name in only
    ]
    return place(model, quantized, runtime_named(runtime))


RESIDUAL = "c1 = Conv(x,w1) r1 = Relu(c1) c2 = Conv(r1,w2) r2 = Relu(c2) c3 = Conv(r2,w3) a = Add(c3,r1) y = Relu(a)"


def test_onnxruntime_needs_the_output_of_every_convolution_behind_its_relu():
    found = placed("c1 = Conv(x,w1) r1 = Relu(c1) c2 = Conv(r1,w2) k = Clip(c2,lo,hi) y = Conv(k,w3)")
    assert list(found.values) == ["r1", "k", "y"]
    assert found.groups == ()


def test_an_add_of_two_convolutions_runs_in_integers_where_its_sum_is_wanted_so():
    assert list(placed(RESIDUAL).values) == ["r1", "r2", "c3"]
    assert list(placed(RESIDUAL.replace("y = Relu(a)", "r = Relu(a) y = Conv(r,w4)")).values) == [
        "r1",
        "r2",
        "c3",
        "r",
        "y",
    ]


@pytest.mark.parametrize(
    ("runtime", "values"),
    [
        ("ort-cpu", ["r1", "r2", "c3", "r", "y"]),
        ("openvino", ["r1", "r2", "c3", "r"]),
        ("tensorrt", ["r1"]),
        ("migraphx", []),
    ],
)
def test_a_residual_block_by_runtime(runtime, values):
    given = "int8 static" if runtime_named(runtime).zero_points else "int8 static sym"
    found = placed(RESIDUAL.replace("y = Relu(a)", "r = Relu(a) y = Conv(r,w4)"), runtime, given=given)
    assert list(found.values) == values


def test_movers_share_a_scale_with_what_they_move_and_carriers_do_not():
    nodes = """c1 = Conv(x,w1) r1 = Relu(c1) p = MaxPool<kernel_shape=[2,2]>(r1) t = Transpose<perm=[0,1,3,2]>(p)
    g = Sigmoid(t) y = Conv(g,w2)"""
    found = placed(nodes)
    assert list(found.values) == ["r1", "p", "t", "g", "y"]
    assert found.groups == (("r1", "p", "t"),)


def test_what_comes_from_a_float_operator_stays_float():
    nodes = "c1 = Conv(x,w1) t = Tanh(c1) a = Add(t,c1) p = MaxPool<kernel_shape=[2,2]>(a) y = Conv(p,w2)"
    assert list(placed(nodes).values) == ["c1", "y"]


def test_what_flows_to_no_layer_is_not_rounded_for_its_own_sake():
    assert list(placed("c1 = Conv(x,w1) s = Sigmoid(c1) y = GlobalAveragePool(s)").values) == ["c1"]


@pytest.mark.parametrize("nodes", ["y = MatMul(x,m1)", "h = MatMul(x,m1) y = Add(h,b1)", "y = Gemm(x,m1,b1)"])
def test_products_of_rows_need_no_rounded_output(nodes):
    assert placed(nodes, shape="3,4").values == {}


@pytest.mark.parametrize("nodes", ["h = MatMul(x,m1) y = Relu(h)", "h = Gemm(x,m1,b1) y = Relu(h)"])
def test_but_for_a_relu_behind_them(nodes):
    assert list(placed(nodes, shape="3,4").values) == ["y"]


def test_a_relu_with_another_reader_of_its_input_does_not_vanish():
    found = placed("c1 = Conv(x,w1) r = Relu(c1) a = Add(c1,r) y = Conv(a,w2)")
    assert list(found.values) == ["c1", "y"]


def test_the_lowest_code_stands_for_0_behind_a_relu_even_of_a_symmetric_scheme():
    nodes = "c1 = Conv(x,w1) r = Relu(c1) f = MaxPool<kernel_shape=[2,2]>(r) c2 = Conv(f,w2) y = Conv(c2,w3)"
    found = placed(nodes, given="int8 static sym")
    assert {name: scheme.symmetric for name, scheme in found.values.items()} == {
        "r": False, "f": False, "c2": True, "y": True,
    }  # fmt: skip
    assert found.values["r"].ranging.name == "minmax"


@pytest.mark.parametrize(
    ("given", "weight"), [("int16 static", "int8"), ("e4m3 static", "e4m3"), ("int8 static", "int4 g4")]
)
def test_layers_that_compute_in_float_round_nothing_beside_their_inputs(given, weight):
    nodes = "h = MatMul(x,m1) r = Relu(h) y = MatMul(r,m2)"
    assert placed(nodes, given=given, weight=weight, shape="3,4").values == {}


def test_kept_layers_round_nothing():
    found = placed("c1 = Conv(x,w1) c2 = Conv(c1,w2) y = Conv(c2,w3)", only=["c2"])
    assert list(found.values) == ["c2"]


@pytest.mark.parametrize("order", ["Add(c3,x)", "Add(x,c3)"])
def test_the_skip_is_the_input_of_the_add_that_took_the_shorter_way(order):
    nodes = f"c1 = Conv(x,w1) c2 = Conv(c1,w2) c3 = Conv(c2,w3) y = {order}"
    assert list(placed(nodes, "tensorrt", given="int8 static sym").values) == ["x"]
    down = f"d = Conv(x,w4) c1 = Conv(x,w1) c2 = Conv(c1,w2) c3 = Conv(c2,w3) y = {order.replace('x', 'd')}"
    assert list(placed(down, "tensorrt", given="int8 static sym").values) == ["d"]


def test_a_maxpool_that_tells_where_its_maxima_were_carries_no_integers():
    nodes = "c1 = Conv(x,w1) p, i = MaxPool<kernel_shape=[2,2]>(c1) k = Cast<to=1>(i) c2 = Conv(p,w2) y = Add(c2,k)"
    assert placed(nodes).groups == ()


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_nothing_static_places_nothing(runtime):
    assert placed("c1 = Conv(x,w1) y = Relu(c1)", runtime, only=[]).values == {}
