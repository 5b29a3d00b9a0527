"""Operator sets are raised without a change of what the graph computes; the converter never holds the weights."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx import helper, parser

from fewbit.checkpoints.onnx.opset import upgraded
from fewbit.errors import CheckpointError
from fewbit.onnx_graph.constants import is_constant
from fewbit.runtimes import runtime_named

#: Axes are attributes, a split needs no count, a softmax flattens, and a branch holds some of it too.
OLD = """<ir_version: 7, opset_import: ["" : 11]> g (float[2,4,8] x, bool c) => (float[4,M,N] y) {
    s, t = Split<axis=1>(x)
    u = Unsqueeze<axes=[0]>(s)
    v = Squeeze<axes=[0]>(u)
    p = Softmax<axis=1>(v)
    m = ReduceMean<axes=[2], keepdims=1>(t)
    z = Add(p, m)
    y = If(c) <
        then_branch = a () => (float[4,M,N] i) <float[8,400] k> { q = MatMul(z, k) i = Unsqueeze<axes=[0]>(q) },
        else_branch = b () => (float[4,M,N] j) <float[8,400] k> { r = MatMul(z, k) j = Unsqueeze<axes=[0]>(r) }
    >
}"""


def old_model():
    proto = parser.parse_model(OLD)
    draw = np.random.default_rng(0)
    for attribute in proto.graph.node[-1].attribute:
        table = helper.make_tensor("k", 1, [8, 400], draw.normal(size=3200).astype(np.float32).tobytes(), raw=True)
        del attribute.g.initializer[:]
        attribute.g.initializer.append(table)
        del attribute.g.output[0].type.tensor_type.shape.dim[:]
        for _ in range(4):
            attribute.g.output[0].type.tensor_type.shape.dim.add()
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", 1, [None] * 4))
    return proto


@pytest.mark.parametrize("branch", [True, False])
@pytest.mark.parametrize("opset", [13, 19, 21])
def test_a_graph_of_set_11_computes_the_same_in_a_newer_one(run, branch, opset):
    proto = old_model()
    feeds = {"x": np.random.default_rng(1).normal(size=(2, 4, 8)).astype(np.float32), "c": np.asarray(branch)}
    made = upgraded(ir.from_proto(proto), opset)
    assert made.graph.opset_imports[""] == opset
    np.testing.assert_array_equal(run(ir.to_proto(made), feeds)["y"], run(proto, feeds)["y"])


def test_weights_are_the_very_same_objects_afterwards():
    model = ir.from_proto(old_model())
    before = [value.const_value for graph in model.graphs() for value in graph.initializers.values()]
    after = upgraded(model, 21)
    large = [value for graph in after.graphs() for value in graph.initializers.values() if is_constant(value)]
    kept = [value.const_value for value in large if value.const_value.nbytes > 1024]
    assert [id(tensor) for tensor in kept] == [id(tensor) for tensor in before]


def test_a_graph_whose_operators_did_not_change_keeps_its_nodes(case):
    model = case('<ir_version: 8, opset_import: ["" : 13]> g (float[2,4] x) => (float[2,4] y) { y = Relu(x) }').model
    node = model.graph.graph[0]
    assert upgraded(model.graph, 21).graph[0] is node
    assert model.graph.ir_version == 10


def test_an_operator_without_a_successor_is_refused_with_the_sets(case):
    node = "y = BatchNormalization<spatial=0>(x,s,s,s,s)"
    text = f'<ir_version: 4, opset_import: ["" : 8]> g (float[2,4] x, float[4] s) => (float[2,4] y) {{ {node} }}'
    with pytest.raises(CheckpointError, match="operator set 21, which these schemes need, from 8"):
        upgraded(case(text).model.graph, 21)


def test_a_model_with_functions_of_its_own_is_refused_where_they_had_to_be_converted():
    text = """<ir_version: 8, opset_import: ["" : 13, "own" : 1]> g (float[2,4] x) => (float[1,4] y) { y = own.mean(x) }
    <domain: "own", opset_import: ["" : 13]> mean (a) => (b) { b = ReduceMean<axes=[0]>(a) }"""
    with pytest.raises(CheckpointError, match="the model holds functions; inline them"):
        upgraded(ir.from_proto(parser.parse_model(text)), 21)


@pytest.mark.parametrize("name", ["matmul", "conv"])
def test_layers_keep_their_names_through_the_converter(case, run, error, tmp_path, name):
    nodes, shape = {"matmul": ("h = MatMul(x,w)", (8, 5)), "conv": ("h = Conv(x,w)", (3, 4, 3, 3))}[name]
    head = '<ir_version: 7, opset_import: ["" : 11]> g (float[2,4,6,8] x) => (float[A,B,C,D] y)'
    text = f"{head} {{ {nodes} y = ReduceMean<axes=[1],keepdims=1>(h) }}"
    own = case(text, w=shape).quantize(runtime_named("ort-cpu"), weight="int8", given="int16 static")
    written = own.write(runtime_named("ort-cpu"), tmp_path / "m.onnx")
    assert list(written.forms) == list(own.model.found)
    assert written.opset == 21
    assert error(run(tmp_path / "m.onnx", own.feeds)["y"], own.simulated()) < 1e-5
