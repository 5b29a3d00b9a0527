"""Products inside attention are found by what flows into and out of a Softmax, and nothing else is taken for one."""

import onnx_ir as ir
import pytest

from fewbit.onnx_graph.attention import find_products
from fewbit.onnx_graph.constants import fold_constants
from fewbit.onnx_graph.layers import SCOPES

FLOATS = "float[n, 4, 6, 8] q, float[n, 4, 6, 8] k, float[n, 4, 6, 8] v, bool[n, 1, 1, 6] mask"


def graph(onnx_model, body, constants=None, inputs=FLOATS, output="float[n, a, b, c] y"):
    model = ir.from_proto(onnx_model(f"({inputs}) => ({output}) {{ {body} }}", constants or {}))
    fold_constants(model)
    return model


def found(model):
    return {own.layer.name: {name: own.value(name).name for name in own.operands} for own in find_products(model)}


def test_both_products_are_found_through_scale_mask_and_casts(onnx_model):
    body = """kt = Transpose<perm=[0, 1, 3, 2]>(k)  s0 = MatMul(q, kt)  s1 = Div(s0, c)  s2 = Where(mask, s1, low)
        s3 = Cast<to=11>(s2)  p0 = Softmax<axis=-1>(s3)  p1 = Cast<to=1>(p0)  p2 = Dropout(p1)  y = MatMul(p2, v)"""
    assert found(graph(onnx_model, body, {"c": (1,), "low": (1,)})) == {
        "MatMul:s0.query_key": {"query": "q", "key": "kt"},
        "MatMul:y.probabilities_value": {"probabilities": "p2", "value": "v"},
    }


def test_heads_may_be_axes_that_come_and_go_around_the_products(onnx_model):
    body = """q1 = Reshape(q, rows)  k1 = Reshape(k, columns)  s0 = MatMul(q1, k1)  s1 = Reshape(s0, heads)
        p0 = Softmax<axis=-1>(s1)  p1 = Reshape(p0, square)  v1 = Reshape(v, rows)  y = MatMul(p1, v1)"""
    model = graph(
        onnx_model, body, dict.fromkeys(("rows", "columns", "heads", "square"), (3,)), output="float[a, b, c] y"
    )
    assert [list(own.values()) for own in found(model).values()] == [["q1", "k1"], ["p1", "v1"]]


def test_axes_of_a_token_are_those_that_are_summed_over_but_of_a_value_its_own(onnx_model):
    body = "s = MatMul(q, k)  p = Softmax<axis=-1>(s)  y = MatMul(v, p)"  # probabilities on the right
    first, second = find_products(graph(onnx_model, body))
    axes = {name: (own.index, own.axis) for product in (first, second) for name, own in product.operands.items()}
    assert axes == {"query": (0, -1), "key": (1, -2), "probabilities": (1, -2), "value": (0, -2)}


@pytest.mark.parametrize(
    "body",
    [
        "s = MatMul(q, k)  y = Softmax<axis=-1>(s)",  # nothing takes the probabilities
        "p = Softmax<axis=-1>(q)  y = MatMul(p, v)",  # no product makes the scores
        "s = MatMul(q, w)  p = Softmax<axis=-1>(s)  y = MatMul(p, v)",  # a layer makes them
        "s = MatMul(q, k)  p = Softmax<axis=-1>(s)  y = MatMul(p, w)",  # a layer takes the probabilities
        "s = MatMul(q, k)  e = Exp(s)  p = Softmax<axis=-1>(e)  y = MatMul(p, v)",  # scores that are more than scaled
    ],
)
def test_what_is_no_attention_is_not_found(onnx_model, body):
    assert find_products(graph(onnx_model, body, {"w": (8, 6)})) == []


def test_names_are_those_of_modules_or_of_the_paths_in_names_of_nodes(onnx_model):
    body = "s = MatMul(q, k)  p = Softmax<axis=-1>(s)  y = MatMul(p, v)"
    model = graph(onnx_model, body)
    first, _, second = model.graph
    first.name, second.name = "/encoder/self/MatMul", "/encoder/self/MatMul_1"
    assert list(found(model)) == ["encoder.self.query_key", "encoder.self.MatMul_1.probabilities_value"]
    for node in (first, second):
        node.metadata_props[SCOPES] = "['', 'layers.0', 'layers.0.attention', 'matmul']"
    assert list(found(model)) == ["layers.0.attention.query_key", "layers.0.attention.probabilities_value"]
    for node in (first, second):
        node.metadata_props[SCOPES] = "['', 'matmul']"
    assert list(found(model)) == ["query_key", "probabilities_value"]


def test_two_attentions_of_one_module_have_names_of_their_own(onnx_model):
    body = """s = MatMul(q, k)  p = Softmax<axis=-1>(s)  o = MatMul(p, v)
        s2 = MatMul(o, k)  p2 = Softmax<axis=-1>(s2)  y = MatMul(p2, v)"""
    model = graph(onnx_model, body)
    for node in model.graph:
        node.metadata_props[SCOPES] = "['', 'attention', 'matmul']"
    assert list(found(model)) == [
        "MatMul:s.query_key", "MatMul:o.probabilities_value", "MatMul:s2.query_key", "MatMul:y.probabilities_value",
    ]  # fmt: skip


def test_the_type_of_operands_is_that_of_what_they_are_made_of(onnx_model):
    inputs = FLOATS.replace("float", "float16")
    body = "a = Neg(q)  s = MatMul(a, k)  p = Softmax<axis=-1>(s)  o = MatMul(p, v)  y = Neg(o)"
    model = graph(onnx_model, body, inputs=inputs, output="float16[n, a, b, c] y")
    assert {own.dtype for own in find_products(model)} == {ir.DataType.FLOAT16}


@pytest.mark.parametrize(
    ("body", "inputs", "output"),
    [
        (
            """s = Einsum<equation="bhqd,bhkd->bhqk">(q, k)  p = Softmax<axis=-1>(s)
            y = Einsum<equation="bhqk,bhkd->bhqd">(p, v)""",
            FLOATS,
            "float[n, a, b, c] y",
        ),
        (
            "s = Gemm<transB=1>(q, k, c)  p = Softmax<axis=-1>(s)  y = Gemm(p, v)",
            "float[6, 8] q, float[6, 8] k, float[6, 8] v, float[6, 6] c",
            "float[6, 8] y",
        ),
    ],
)
def test_products_of_other_operators_are_found_with_the_reason_why_they_stay_float(onnx_model, body, inputs, output):
    kind = body.split("= ")[1].split("<")[0]
    model = graph(onnx_model, body, inputs=inputs, output=output)
    assert found(model) == {
        f"{kind}:s.query_key": {"query": "q", "key": "k"},
        f"{kind}:y.probabilities_value": {"probabilities": "p", "value": "v"},
    }
    assert all(f"a{'n' * (kind == 'Einsum')} {kind}, and operands" in own.float_reason for own in find_products(model))


def test_a_gemm_with_a_weight_is_a_layer_and_no_product(onnx_model):
    body = "s = Gemm(q, w)  p = Softmax<axis=-1>(s)  y = Gemm(p, w)"
    model = graph(onnx_model, body, {"w": (8, 8)}, inputs="float[6, 8] q", output="float[6, 8] y")
    assert find_products(model) == []


def test_a_whole_attention_is_two_products_that_nobody_sees(onnx_model):
    model = graph(onnx_model, "y = Neg(q)")
    (node,) = model.graph
    node.op_type, node.name = "Attention", "/encoder/Attention"
    assert list(found(model)) == ["encoder.query_key", "encoder.probabilities_value"]
    assert {own.float_reason for own in find_products(model)} == {
        "it is inside of an Attention, and operands of a MatMul are rounded"
    }
    node.domain = "someone.else"
    assert find_products(model) == []
