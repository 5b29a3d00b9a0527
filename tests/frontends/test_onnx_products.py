"""Products inside attention of a graph: measured, rounded and compared as their operands say, by an oracle in NumPy."""

import numpy as np
import pytest

import fewbit as fb
from fewbit.activation import Activation
from fewbit.errors import PlanError
from fewbit.frontends.onnx.frontend import OnnxFrontend
from fewbit.sources import open_source

FRONTEND = OnnxFrontend()
TEXT = """(float[n, 5, 8] x) => (float[n, 5, 8] y) {
    q = MatMul(x, "q.weight")  k = MatMul(x, "k.weight")  v = MatMul(x, "v.weight")  kt = Transpose<perm=[0, 2, 1]>(k)
    s = MatMul(q, kt)  c = Mul(s, half)  p = Softmax<axis=-1>(c)  y = MatMul(p, v)
}"""
CONSTANTS = {"q.weight": (8, 8), "k.weight": (8, 8), "v.weight": (8, 8), "half": np.asarray([0.5], np.float32)}
NAMES = ["MatMul:s.query_key", "MatMul:y.probabilities_value"]


def batches(count=3):
    return [np.random.default_rng(n).normal(size=(4, 5, 8)).astype(np.float32) for n in range(count)]


def softmax(values):
    powers = np.exp(values - values.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attention(model, x, rounded=None):
    """What the graph computes, its operands rounded by functions, in float64 but for the roundings."""
    rounded = rounded or dict.fromkeys(("query", "key", "probabilities", "value"), lambda own: own)
    weights = {name: own.weight.const_value.numpy() for name, own in model.found.items()}
    q, k, v = (x @ weights[name] for name in "qkv")
    query, key = rounded["query"](q), rounded["key"](k.swapaxes(1, 2))
    p = softmax(query @ key * np.float32(0.5))
    return rounded["probabilities"](p) @ rounded["value"](v), {"query": q, "key": k, "probabilities": p, "value": v}


def rule(text, **more):
    return fb.Rule(kind="attention", input=text, **more)


def test_statistics_are_those_of_the_operands(onnx_model):
    model = open_source(onnx_model(TEXT, CONSTANTS)).load()
    products = FRONTEND.products(model, None)
    assert [own.name for own in products] == NAMES
    wanted = dict(zip(NAMES, ("extremes", "histogram"), strict=True))
    found = FRONTEND.product_statistics(model, products, wanted, batches())
    seen = [attention(model, x)[1] for x in batches()]
    for name, operand in zip(
        (NAMES[0], NAMES[0], NAMES[1], NAMES[1]), ("query", "key", "probabilities", "value"), strict=True
    ):
        numbers = np.concatenate([own[operand].ravel() for own in seen])
        own = found[name][operand]
        assert own.count == numbers.size
        # Sums of eight float32 products in another order.
        assert np.allclose([np.max(own.low), np.max(own.high)], [numbers.min(), numbers.max()], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["int8 tensor asym static", "int8 tensor asym", "int8 token asym", "e4m3 token", "int4 tensor"]
)
def test_a_graph_computes_with_rounded_operands(onnx_model, text):
    result = fb.quantize(
        onnx_model(TEXT, CONSTANTS), fb.Recipe([rule(text)]), calibration=batches(), evaluation=batches(1)
    )
    installed = {name: own for rounded in result.model.products.values() for name, own in rounded.items()}
    assert list(installed) == ["query", "key", "probabilities", "value"]

    def rounding(name):
        own: Activation = installed[name]
        # The tokens of a key lie along its last but one axis here.
        turned = name == "key"
        return lambda values: (
            np.asarray(own.rounded(np.ascontiguousarray(values.swapaxes(1, 2)))).swapaxes(1, 2)
            if turned
            else np.asarray(own.rounded(values.astype(np.float32)))
        )

    x = batches(5)[4]
    expected, _ = attention(result.model, x, {name: rounding(name) for name in installed})
    found, plain = result.run(x)["y"], attention(result.model, x)[0]
    # A number amid two codes may fall to either side of it, in one of 20 values of a sum: a step and no more.
    assert np.abs(found - expected).mean() < 0.05 * np.abs(expected - plain).mean()
    assert np.abs(expected - plain).max() > 1e-4
    rows = {own.name: own for own in result.report.layers}
    assert all(rows[name].output_sqnr > 10 and rows[name].becomes.startswith("operands") for name in NAMES)


def test_ranges_are_those_behind_quantized_layers_and_products_are_float_again_afterwards(onnx_model):
    rules = [fb.Rule(kind="linear", weight="int2 channel"), rule("int8 tensor asym static")]
    both = fb.quantize(onnx_model(TEXT, CONSTANTS), fb.Recipe(rules), calibration=batches())
    alone = fb.quantize(onnx_model(TEXT, CONSTANTS), fb.Recipe(rules[1:]), calibration=batches())
    scales = [own.model.products[NAMES[0]]["query"].scale for own in (both, alone)]
    seen = np.concatenate([x @ both.model.layers["q"].qtensor.dequantize().T for x in batches()])
    assert np.isclose(scales[0], (seen.max() - seen.min()) / 255, rtol=1e-5)
    assert not np.isclose(*scales, rtol=1e-2)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("int8 g8", "operands int8 g8 asym: those of a graph take no groups; use token or tensor"),
        ("int8 channel static", "those of attention have no channels of their own; use tensor"),
        ("int8 token mse", "a graph does not search for its range while it runs"),
    ],
)
def test_what_a_graph_cannot_round_is_a_problem_of_the_plan(onnx_model, text, message):
    made = fb.plan(onnx_model(TEXT, CONSTANTS), fb.Recipe([rule(text)]))
    assert any(message in problem for problem in made.problems), made.problems


def test_products_that_are_no_matmul_are_a_problem_of_the_plan_unless_kept(onnx_model):
    text = TEXT.replace("MatMul(q, kt)", 'Einsum<equation="bqd,bdk->bqk">(q, kt)')
    proto = onnx_model(text, CONSTANTS)
    made = fb.plan(proto, fb.Recipe([rule("int8 static")]))
    assert made.problems == (
        "Einsum:s.query_key: it is an Einsum, and operands of a MatMul are rounded; keep it, or export the attention "
        "as MatMul and Softmax",
    )
    kept = fb.Recipe([fb.keep("Einsum:.*"), rule("int8 static")])
    result = fb.quantize(proto, kept, calibration=batches(), evaluation=batches(1))
    assert list(result.model.products) == ["MatMul:y.probabilities_value"]


def test_products_in_a_branch_have_no_fixed_range(onnx_model):
    inner = "s = MatMul(x, xt)  p = Softmax<axis=-1>(s)  t = MatMul(p, x)"
    text = f"""(float[n, 5, 8] x, bool b) => (float[n, 5, 8] y) {{ xt = Transpose<perm=[0, 2, 1]>(x)
        y = If(b) <then_branch = one () => (float[n, 5, 8] t) {{ {inner} }},
                   else_branch = two () => (float[n, 5, 8] e) {{ e = Neg(x) }}> }}"""
    feeds = [{"x": x, "b": np.asarray(True)} for x in batches()]
    with pytest.raises(PlanError, match="it is inside of a branch or a loop, whose values onnxruntime does not show"):
        fb.quantize(onnx_model(text, {}), fb.Recipe([rule("int8 static")]), calibration=feeds)
    result = fb.quantize(onnx_model(text, {}), fb.Recipe([rule("int8 tensor asym")]), calibration=feeds)
    plain = open_source(onnx_model(text, {})).load()
    assert not np.array_equal(result.run(feeds[0])["y"], FRONTEND.run(plain, feeds[0])["y"])


def test_a_graph_without_attention_says_so(onnx_model):
    proto = onnx_model('(float[n, 8] x) => (float[n, 8] y) { y = MatMul(x, "l.weight") }', {"l.weight": (8, 8)})
    with pytest.raises(PlanError, match="matches no layer"):
        fb.quantize(
            proto, fb.Recipe([fb.Rule(kind="linear", weight="int8"), rule("int8 static")]), calibration=batches()
        )
