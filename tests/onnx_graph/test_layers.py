"""Which nodes are layers, what they are called, and constants in one form."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fewbit.onnx_graph.live import OnnxModel


def layers_of(proto):
    return {own.layer.name: own for own in OnnxModel.of(ir.from_proto(proto), "test").found.values()}


ALL = """(float[n, 8, 6, 6] x, int64[n] ids) => (float[n, 5] y, float[n, 8, 7, 7] t, float[n, 16] e) {
    c = Conv<group=2>(x, "conv.weight", "conv.bias")
    t = ConvTranspose(x, "up.weight")
    p = GlobalAveragePool(c)
    f = Flatten(p)
    g = Gemm<transB=1>(f, "fc1.weight", "fc1.bias")
    h = Gemm(g, "fc2.weight")
    m = MatMul(h, "fc3.weight")
    y = Add(m, "fc3.bias")
    e = Gather("words.weight", ids)
}"""
SHAPES = {
    "conv.weight": (4, 4, 3, 3), "conv.bias": (4,), "up.weight": (8, 8, 2, 2), "fc1.weight": (6, 4), "fc1.bias": (6,),
    "fc2.weight": (6, 7), "fc3.weight": (7, 5), "fc3.bias": (5,), "words.weight": (300, 16),
}  # fmt: skip


def test_every_operator_with_a_constant_weight_is_a_layer(onnx_model):
    found = layers_of(onnx_model(ALL, SHAPES))
    told = {name: (own.layer.kind, own.layer.shape, own.layer.stored, own.layer.multiplies_rows)
            for name, own in found.items()}  # fmt: skip
    assert told == {
        "conv": ("conv", (4, 36), (4, 4, 3, 3), True),
        "up": ("conv", (8, 32), (8, 8, 2, 2), False),
        "fc1": ("linear", (6, 4), None, True),
        "fc2": ("linear", (7, 6), (6, 7), True),
        "fc3": ("linear", (5, 7), (7, 5), True),
        "words": ("embedding", (300, 16), None, False),
    }
    assert found["words"].data.name == "ids"
    assert [found[name].bias.name for name in ("conv", "fc1")] == ["conv.bias", "fc1.bias"]
    assert found["fc3"].bias_add.op_type == "Add"
    assert [name for name, own in found.items() if own.layer.bias] == ["conv", "fc1", "fc3"]
    assert found["fc3"].bias_value.name == "fc3.bias"
    assert [found[name].result.name for name in ("fc1", "fc3")] == ["g", "y"]
    assert found["fc3"].output.name == "m"


def test_what_reads_no_constant_weight_is_none(onnx_model):
    text = """(float[n, 8] x, float[8, 8] w) => (float[n, 8] y) {
        a = MatMul(x, w)
        b = MatMul(small, "left.weight")
        c = Gemm<transA=1>(x, x)
        y = Add(a, b)
    }"""
    assert layers_of(onnx_model(text, {"small": (1, 8), "left.weight": (8, 8)})) == {}


def test_a_bias_that_others_read_or_that_is_no_row_is_not_the_layers(onnx_model):
    text = """(float[n, 8] x) => (float[n, 8] y, float[n, 8] z) {
        m = MatMul(x, "l.weight")
        y = Add(m, bias)
        k = MatMul(x, "k.weight")
        s = Add(k, one)
        z = Sub(s, m)
    }"""
    found = layers_of(onnx_model(text, {"l.weight": (8, 8), "k.weight": (8, 8), "bias": (8,), "one": (1,)}))
    assert found["l"].bias_add is None  # z reads it before the bias, too
    assert found["k"].bias_add is None
    assert found["l"].result.name == "m"


def test_a_weight_that_is_turned_and_cast_is_computed_and_keeps_its_name(onnx_model):
    text = """(float[n, 8] x) => (float[n, 4] y) {
        wide = Cast<to=1>("l.weight")
        same = Identity(wide)
        turned = Transpose<perm=[1, 0]>(same)
        y = MatMul(x, turned)
    }"""
    weight = np.random.default_rng(0).normal(size=(4, 8)).astype(np.float16)
    found = layers_of(onnx_model(text, {"l.weight": weight}))
    assert list(found) == ["l"]
    assert np.array_equal(found["l"].weight.const_value.numpy(), weight.astype(np.float32).T)
    assert found["l"].layer.shape == (4, 8)


def test_constant_nodes_are_weights_too(onnx_model):
    proto = onnx_model("(float[n, 8] x) => (float[n, 4] y) { w = Identity(x)  y = MatMul(x, w) }", {})
    values = onnx.numpy_helper.from_array(np.ones((8, 4), np.float32), "held")
    proto.graph.node[0].CopyFrom(onnx.helper.make_node("Constant", [], ["w"], value=values))
    proto.graph.node[1].name = "/encoder/fc/MatMul"
    assert list(layers_of(proto)) == ["encoder.fc"]  # by the node: the weight has no name of its own


@pytest.mark.parametrize("turned", [True, False])
def test_layers_that_share_a_weight_name_each_other(onnx_model, turned):
    text = """(int64[n] ids, float[n, 16] x) => (float[n, 16] e, float[n, 300] y) {
        e = Gather("words.weight", ids)
        w = Transpose<perm=[1, 0]>("words.weight")
        y = MatMul(x, w)
    }"""
    if not turned:
        text = text.replace('w = Transpose<perm=[1, 0]>("words.weight")', "").replace(
            "MatMul(x, w)", 'Gemm<transB=1>(x, "words.weight")'
        )
    first, second = layers_of(onnx_model(text, {"words.weight": (300, 16)})).values()
    assert (first.layer.kind, second.layer.kind) == ("embedding", "head")
    assert first.layer.tied == (second.layer.name,)
    assert second.layer.tied == (first.layer.name,)
    assert first.layer.name != second.layer.name


def test_layers_inside_of_branches_are_found(onnx_model):
    text = """(float[n, 8] x, bool deep) => (float[n, 8] y) {
        y = If (deep) <
            then_branch = deeper () => (float[n, 8] z) { z = MatMul(x, "inner.weight") },
            else_branch = flat () => (float[n, 8] z2) { z2 = Relu(x) }
        >
    }"""
    assert list(layers_of(onnx_model(text, {"inner.weight": (8, 8)}))) == ["inner"]


def test_a_copy_is_edited_without_the_model(onnx_model):
    model = OnnxModel.of(ir.from_proto(onnx_model(ALL, SHAPES)), "test")
    graph, found = model.copy()
    assert list(found) == list(model.found)
    found["fc2"].node.op_type = "Edited"
    assert model.found["fc2"].node.op_type == "Gemm"
    assert found["fc1"].weight.const_value is model.found["fc1"].weight.const_value  # numbers are shared
    assert graph.graph is not model.graph.graph


def test_names_by_modules_that_the_exporter_recorded_and_never_two_alike(onnx_model):
    text = "(float[n, 8] x) => (float[n, 8] y) { a = MatMul(x, w1)  b = MatMul(a, w2)  y = MatMul(b, w3) }"
    proto = onnx_model(text, {"w1": (8, 8), "w2": (8, 8), "w3": (8, 8)})
    for node, scopes in zip(proto.graph.node, ("['', 'mlp.fc', 'matmul']", "['', 'mlp', 'x']", "['', 'mlp', 'z']"),
                            strict=True):  # fmt: skip
        node.metadata_props.add(key="pkg.torch.onnx.name_scopes", value=scopes)
    assert list(layers_of(proto)) == ["mlp.fc", "MatMul:b", "MatMul:y"]
