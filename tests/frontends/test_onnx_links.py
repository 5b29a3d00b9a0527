"""Links of graphs: what reads what, proven by a fold that leaves outputs as they are; nothing else is taken for one."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from fewbit.frontends.onnx.channel_path import Path
from fewbit.frontends.onnx.channel_scaling import exchange, producer_of
from fewbit.frontends.onnx.frontend import OnnxFrontend
from fewbit.frontends.onnx.links import Fold, find_folds
from fewbit.onnx_graph.live import OnnxModel

FRONTEND = OnnxFrontend()
#: Keys and values have two heads of four channels, queries four.
GROUPED = """(float[n, 5, 16] x) => (float[n, 5, 16] y) {
    h = LayerNormalization(x, "norm.weight", "norm.bias")
    q = MatMul(h, "q.weight")  k = MatMul(h, "k.weight")  v = MatMul(h, "v.weight")
    q1 = Reshape(q, queries)  q2 = Transpose<perm=[0, 2, 1, 3]>(q1)
    k1 = Reshape(k, pairs)  k2 = Expand(k1, twice)  k3 = Reshape(k2, queries)  k4 = Transpose<perm=[0, 2, 3, 1]>(k3)
    v1 = Reshape(v, pairs)  v2 = Expand(v1, twice)  v3 = Reshape(v2, queries)  v4 = Transpose<perm=[0, 2, 1, 3]>(v3)
    s = MatMul(q2, k4)  p = Softmax<axis=-1>(s)  o1 = MatMul(p, v4)
    o2 = Transpose<perm=[0, 2, 1, 3]>(o1)  o3 = Reshape(o2, flat)  y = MatMul(o3, "o.weight")
}"""
SHAPES = {
    "queries": np.asarray([0, 5, 4, 4]), "pairs": np.asarray([0, 5, 2, 1, 4]), "twice": np.asarray([1, 1, 2, 2, 4]),
    "flat": np.asarray([0, 5, 16]), "norm.weight": np.linspace(0.5, 2, 16, dtype=np.float32), "norm.bias": (16,),
    "q.weight": (16, 16), "k.weight": (16, 8), "v.weight": (16, 8), "o.weight": (16, 16),
}  # fmt: skip
PICTURES = """(float[n, 3, 8, 8] x) => (float[n, 5] y) {{
    a1 = Conv<pads=[1, 1, 1, 1]>(x, "a.weight", "a.bias")  a2 = {bend}(a1)
    b1 = Conv<group=8, pads=[1, 1, 1, 1]>(a2, "b.weight")  b2 = MaxPool<kernel_shape=[2, 2], strides=[2, 2]>(b1)
    c1 = ConvTranspose<group=2>(b2, "c.weight", "c.bias")  c2 = Relu(c1)  c3 = Flatten(c2)
    y = Gemm<transB=1>(c3, "d.weight", "d.bias")
}}"""
KERNELS = {
    "a.weight": (8, 3, 3, 3), "a.bias": (8,), "b.weight": (8, 1, 3, 3), "c.weight": (8, 3, 2, 2), "c.bias": (6,),
    "d.weight": (5, 150), "d.bias": (5,),
}  # fmt: skip
GATED = """(float[n, 4, 8] x) => (float[n, 4, 8] y) {
    u = Mul(x, x)  m = ReduceMean<axes=[-1]>(u)  r = Sqrt(m)  d = Div(x, r)
    h0 = Mul("norm.weight", d)  h = Add(h0, shift)
    g0 = MatMul(h, "gate.weight")  g1 = Sigmoid(g0)  g = Mul(g0, g1)
    u0 = MatMul(h, "up.weight")  u1 = Add(u0, "up.bias")  m1 = Mul(g, u1)  w = MatMul(m1, "down.weight")  y = Add(x, w)
}"""
GATES = {
    "norm.weight": (8,), "shift": (1, 1, 8), "gate.weight": (8, 12), "up.weight": (8, 12), "up.bias": (12,),
    "down.weight": (12, 8),
}  # fmt: skip
CHAIN = '(float[n, 8] x) => (float[n, 4] y) { h = MatMul(x, "a.weight")  %s  y = MatMul(r, "b.weight") }'
PAIR = {"a.weight": (8, 8), "b.weight": (8, 4)}


def live(proto):
    return OnnxModel.of(ir.from_proto(proto), "test")


def inputs(shape):
    return np.random.default_rng(1).normal(size=shape).astype(np.float32)


def links(model, x):
    return {fold.link.producer: fold.link for fold in find_folds(model, [x])}


def test_a_norm_reaches_its_readers_and_values_the_output_through_grouped_heads(onnx_model):
    found = links(live(onnx_model(GROUPED, SHAPES)), inputs((2, 5, 16)))
    assert {name: own.consumers for name, own in found.items()} == {"norm": ("q", "k", "v"), "v": ("o",)}
    assert found["norm"].channels.tolist() == list(range(16))
    assert found["v"].channels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 5, 6, 7, 4, 5, 6, 7]
    assert found["v"].outputs == 8


def test_convolutions_of_every_kind_are_linked_through_relu_pooling_and_flattening(onnx_model):
    model = live(onnx_model(PICTURES.format(bend="Relu"), KERNELS))
    found = links(model, inputs((2, 3, 8, 8)))
    assert {name: own.consumers for name, own in found.items()} == {"a": ("b",), "b": ("c",), "c": ("d",)}
    assert found["c"].channels.tolist() == np.repeat(np.arange(6), 25).tolist()


def test_a_gain_of_plain_operators_is_a_producer_and_so_is_what_is_gated(onnx_model):
    found = links(live(onnx_model(GATED, GATES)), inputs((2, 4, 8)))
    assert {name: own.consumers for name, own in found.items()} == {"norm": ("gate", "up"), "up": ("down",)}


@pytest.mark.parametrize(
    "body",
    [
        "zero = Constant<value_float=0.0>()  six = Constant<value_float=6.0>()  r = Clip(h, zero, six)",  # bends
        "r = Sigmoid(h)",
        "r = Softmax<axis=-1>(h)",
        "r = Mul(h, h)",
        "s = Relu(h)  r = Add(s, x)",  # a residual has the numbers too
    ],
)
def test_what_does_not_hand_a_factor_on_is_no_link(onnx_model, body):
    assert links(live(onnx_model(CHAIN % body, PAIR)), 10 * inputs((4, 8))) == {}
    assert list(links(live(onnx_model(CHAIN % "r = LeakyRelu(h)", PAIR)), inputs((4, 8)))) == ["a"]


def test_what_somebody_else_reads_or_shares_is_no_link(onnx_model):
    twice = CHAIN.replace("=> (float[n, 4] y)", "=> (float[n, 4] y, float[n, 8] r)") % "r = Relu(h)"
    assert links(live(onnx_model(twice, PAIR)), inputs((4, 8))) == {}
    shared = '(float[n, 8] x) => (float[n, 8] y) { h = MatMul(x, "a.weight")  r = Relu(h)  y = MatMul(r, "a.weight") }'
    assert links(live(onnx_model(shared, {"a.weight": (8, 8)})), inputs((4, 8))) == {}


@pytest.mark.parametrize(("text", "constants", "shape"), [(GROUPED, SHAPES, (2, 5, 16)), (GATED, GATES, (2, 4, 8))])
def test_a_fold_by_powers_of_two_leaves_the_output_as_it_is_to_the_last_bit(onnx_model, text, constants, shape):
    model, x = live(onnx_model(text, constants)), inputs(shape)
    before = FRONTEND.run(model, x)["y"]
    for fold in find_folds(model, [x]):
        weight = model.found[fold.link.consumers[0]].weight.const_value.numpy()
        undo = fold.fold(np.exp2(np.random.default_rng(2).integers(-3, 4, fold.link.outputs)))
        model.ready.clear()
        assert np.array_equal(FRONTEND.run(model, x)["y"], before)
        assert not np.array_equal(model.found[fold.link.consumers[0]].weight.const_value.numpy(), weight)
        exchange(undo)
        assert np.array_equal(model.found[fold.link.consumers[0]].weight.const_value.numpy(), weight)


def test_a_map_of_channels_that_is_wrong_is_refused(onnx_model, monkeypatch):
    model, x = live(onnx_model(GATED, GATES)), inputs((2, 4, 8))
    right = Path.channels

    def swapped(self, *given):
        return right(self, *given)[::-1]

    assert len(find_folds(model, [x])) == 2
    monkeypatch.setattr(Path, "channels", swapped)
    assert find_folds(model, [x]) == ()


def test_a_fold_that_changes_nothing_proves_nothing(onnx_model):
    # Columns of zeros: every factor leaves the output as it is, the wrong ones too.
    model = live(onnx_model(CHAIN % "r = Relu(h)", {**PAIR, "b.weight": np.zeros((8, 4), np.float32)}))
    assert find_folds(model, [inputs((4, 8))]) == ()


def test_a_gain_that_norms_share_is_divided_for_one_of_them_alone(onnx_model):
    text = """(float[n, 8] x) => (float[n, 4] y, float[n, 8] z) { h = LayerNormalization(x, gain, shift)
        y = MatMul(h, "a.weight")  z = LayerNormalization(x, gain, shift) }"""
    model = live(onnx_model(text, {"gain": (8,), "shift": (8,), "a.weight": (8, 4)}))
    x = inputs((4, 8))
    before = FRONTEND.run(model, x)
    (fold,) = find_folds(model, [x])
    assert fold.link.producer == "LayerNormalization:h"
    fold.fold(np.exp2(np.arange(8.0)))
    model.ready.clear()
    after = FRONTEND.run(model, x)
    assert np.array_equal(before["y"], after["y"])
    assert np.array_equal(before["z"], after["z"])


def test_factors_of_a_gain_are_such_that_it_keeps_eight_bits(onnx_model):
    model, x = live(onnx_model(GROUPED, SHAPES)), inputs((2, 5, 16))
    fold = find_folds(model, [x])[0]
    wanted = np.random.default_rng(3).uniform(0.5, 2, 16)
    exact = fold.storable(wanted)
    mantissa, _ = np.frexp((fold.producer.gain() / exact).astype(np.float32))
    assert np.array_equal(mantissa * 256, np.rint(mantissa * 256))
    assert np.allclose(exact, wanted, rtol=2**-8)  # half a step of the least mantissa
    rows = find_folds(model, [x])[1]
    assert rows.storable(wanted) is wanted


def test_a_norm_that_still_trains_is_no_producer(onnx_model):
    text = """(float[n, 8] x) => (float[n, 4] y) { h = BatchNormalization(x, g, b, m, v)  y = MatMul(h, "a.weight") }"""
    constants = {**dict.fromkeys("gbm", (8,)), "v": np.ones(8, np.float32), "a.weight": (8, 4)}
    model = live(onnx_model(text, constants))
    assert list(links(model, inputs((4, 8)))) == ["BatchNormalization:h"]
    node = model.graph.graph[0]
    node.attributes["training_mode"] = ir.AttrInt64("training_mode", 1)
    assert producer_of(node, {}) is None


def test_a_fold_with_other_columns_is_one_that_a_run_notices(onnx_model):
    model, x = live(onnx_model(GATED, GATES)), inputs((2, 4, 8))
    before = FRONTEND.run(model, x)["y"]
    fold: Fold = find_folds(model, [x])[1]
    wrong = replace(fold, link=replace(fold.link, channels=np.roll(fold.link.channels, 1)))
    wrong.fold(np.exp2(np.arange(12.0) - 6))
    model.ready.clear()
    assert not np.allclose(FRONTEND.run(model, x)["y"], before, rtol=0, atol=0.1)
