"""How products, convolutions and embeddings compute with a quantized parameter and rounded inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from jax_product import W8A8, W, X, matmul, normal, rounded

import fewbit as fb
from fewbit.activation import Activation
from fewbit.errors import CalibrationError, NonFiniteError, NotYetError, PlanError, RecipeError


def by_numpy(packed):
    """Return how the input of a quantized parameter is rounded, in NumPy."""
    return packed.map(np.asarray).activation()


#: Codes by codes, and each kind of scheme that is computed in floats.
PAIRS = [
    ("int8", "int8"), ("int8 tensor", "int8 sym"), ("int4 channel", "int8 tensor"), ("int4 g16", "int8"),
    ("int8 channel asym", "int8"), ("nf4 g16", "uint8"), ("e4m3", "e4m3"), ("nvfp4", "nvfp4"), ("mxfp8", "mxfp8"),
    ("int4 g16", "int8 g16"), ("int8", "int16"),
]  # fmt: skip


@pytest.mark.parametrize(("weight", "given"), PAIRS)
def test_a_dynamic_range_is_that_of_the_input(weight, given):
    run, quantized = fb.jax.quantize(matmul, W, [fb.Rule("w", weight=weight, input=given)], X)
    expected = rounded(X, given) @ fb.jax.dequantize(quantized)["w"]
    # Sums of codes are exact, those of their values are not.
    np.testing.assert_allclose(jax.jit(run)(quantized, X), expected, rtol=1e-5, atol=1e-4)


def test_codes_are_multiplied_in_int32_where_both_sides_have_8_bits():
    run, quantized = fb.jax.quantize(matmul, W, W8A8, X)
    assert run.table[0].runs == "int8 x int8 -> int32"
    text = str(jax.make_jaxpr(run)(quantized, X))
    assert "preferred_element_type=int32" in text
    simulated, other = fb.jax.quantize(matmul, W, [fb.Rule("w", weight="int8", input="uint8")], X)
    assert "int32" not in simulated.table[0].runs
    assert "preferred_element_type=int32" not in str(jax.make_jaxpr(simulated)(other, X))


@pytest.mark.parametrize("given", ["int8 static", "int8 sym static mse", "e4m3 static"])
def test_a_static_range_serves_every_length_afterwards(given):
    sequences = normal(2, 5, 32, seed=3)
    run, quantized = fb.jax.quantize(
        matmul, W, [fb.Rule("w", weight="int8", input=given)], sequences, calibration=[sequences, 2.0 * sequences]
    )
    packed = quantized["w"]
    # The numbers are in the tree: for one sequence, two, and one that is longer than those of calibration.
    for values in (sequences[:1], sequences, normal(3, 11, 32, seed=4)):
        expected = by_numpy(packed).rounded(np.asarray(values)) @ fb.jax.dequantize(quantized)["w"]
        np.testing.assert_allclose(run(quantized, values), expected, rtol=1e-5, atol=1e-4)
    if given == "int8 static":
        low = np.asarray(sequences).min() * 2.0
        zero = np.asarray(packed.arrays["input_zero_point"])
        np.testing.assert_allclose((-128 - zero) * packed.arrays["input_scale"], low, rtol=0.02)


def test_static_ranges_of_a_stack_are_those_of_each_matrix():
    stack = {"w": normal(3, 32, 32) * 0.3}

    def deep(p, x):
        return lax.scan(lambda h, w: (10.0 * h @ w, None), x, p["w"])[0]

    run, quantized = fb.jax.quantize(
        deep, stack, [fb.Rule("w", weight="int8", input="int8 static")], X, calibration=[X]
    )
    scales = np.asarray(quantized["w"].arrays["input_scale"])
    assert scales.shape == (3,)
    assert scales[2] > 5 * scales[1] > 25 * scales[0]
    want = deep(stack, X)
    assert float(jnp.abs(run(quantized, X) - want).max() / jnp.abs(want).max()) < 0.05


CONVOLUTIONS = {
    "nhwc": (("NHWC", "HWIO", "NHWC"), (2, 8, 8, 4), (3, 3, 4, 6), {}),
    "nchw strided": (("NCHW", "OIHW", "NCHW"), (2, 4, 8, 8), (6, 4, 3, 3), {"window_strides": (2, 1)}),
    "grouped": (("NHWC", "HWIO", "NHWC"), (2, 8, 8, 4), (3, 3, 2, 6), {"feature_group_count": 2}),
    "depthwise": (("NHWC", "HWIO", "NHWC"), (2, 8, 8, 4), (3, 3, 1, 4), {"feature_group_count": 4}),
    "dilated": (("NHWC", "HWIO", "NHWC"), (2, 8, 8, 4), (3, 3, 4, 6), {"rhs_dilation": (2, 2)}),
    "transposed": (("NHWC", "HWIO", "NHWC"), (2, 4, 4, 4), (3, 3, 4, 6), {"lhs_dilation": (2, 2)}),
    "one axis": (("NWC", "WIO", "NWC"), (2, 8, 4), (3, 4, 6), {}),
}


CASES = [
    *((case, "int8") for case in CONVOLUTIONS),
    *(("nhwc", given) for given in (None, "int8 tensor", "int8 static", "int8 channel static")),
    ("grouped", None),
    ("nchw strided", "int8 channel static"),
]


@pytest.mark.parametrize(("case", "given"), CASES)
def test_convolutions_with_weights_alone_and_with_inputs(case, given):
    specification, size, kernel, options = CONVOLUTIONS[case]
    options = {"window_strides": (1,) * (len(size) - 2), **options}

    def convolve(p, x):
        return lax.conv_general_dilated(x, p["k"], padding="SAME" if "lhs_dilation" not in options else [(1, 2)] * 2,
                                        dimension_numbers=specification, **options)  # fmt: skip

    parameters, x = {"k": normal(*kernel)}, normal(*size, seed=1)
    run, quantized = fb.jax.quantize(
        convolve, parameters, [fb.Rule(kind="conv", weight="int4 channel", input=given)], x, calibration=[x]
    )
    assert run.table[0].kind == "conv"
    codes = np.asarray(quantized["k"].qtensor().codes)
    assert codes.shape[0] == kernel[specification[1].index("O")]
    values = x
    if given is not None:
        first = specification[0].index("C") == 1
        values = np.asarray(x if first else jnp.moveaxis(x, -1, 1))
        activation, shape = by_numpy(quantized["k"]), values.shape
        if given in ("int8", "e4m3"):  # a token is a sample
            values = activation.rounded(values.reshape(len(values), -1)).reshape(shape)
        elif "channel" in given:
            beside = (-1, *[1] * (len(shape) - 2))
            numbers = {key: getattr(activation, key).reshape(beside) for key in ("scale", "zero_point")}
            values = Activation(scheme=activation.scheme, **numbers).rounded(values)
        else:
            values = activation.rounded(values)
        values = values if first else np.moveaxis(values, 1, -1)
    np.testing.assert_allclose(run(quantized, x), convolve(fb.jax.dequantize(quantized), values), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("given", [None, "int8", "int8 static"])
def test_experts_of_a_ragged_product(given):
    parameters, sizes = {"experts": normal(3, 32, 8)}, jnp.asarray([1, 3, 2])

    def experts(p, x):
        return lax.ragged_dot(x, p["experts"], sizes)

    x = X * jnp.asarray([[1.0], [9.0], [9.0], [9.0], [3.0], [3.0]])
    run, quantized = fb.jax.quantize(
        experts, parameters, [fb.Rule("experts", weight="int8", input=given)], x, calibration=[x]
    )
    assert quantized["experts"].stack == (3,)
    values = x
    if given == "int8 static":
        scales = np.asarray(quantized["experts"].arrays["input_scale"])
        assert scales[1] > scales[2] > scales[0]
        zeros = np.asarray(quantized["experts"].arrays["input_zero_point"])
        each = np.repeat(np.arange(3), np.asarray(sizes))
        scale, zero = scales[each][:, None], zeros[each][:, None]
        values = (np.clip(np.round(np.asarray(x) * (1 / scale)) + zero, -128, 127) - zero) * scale
    elif given:
        values = rounded(x, given)
    want = experts(fb.jax.dequantize(quantized), values)
    np.testing.assert_allclose(run(quantized, x), want, rtol=1e-5, atol=1e-4)


def test_a_stack_as_a_batch_of_a_product():
    parameters, x = {"w": normal(3, 32, 8)}, normal(3, 5, 32, seed=2)

    def batched(p, x):
        return jnp.einsum("eck,ekn->ecn", x, p["w"])

    run, quantized = fb.jax.quantize(batched, parameters, W8A8, x)
    assert quantized["w"].stack == (3,)
    want = batched(fb.jax.dequantize(quantized), rounded(x, "int8"))
    np.testing.assert_allclose(run(quantized, x), want, rtol=1e-5, atol=1e-4)


TABLES = [(own, "fill") for own in ("int4 g8", "int8 tensor", "nvfp4", "int8 channel asym", "nf4-double", "kmeans4")]


@pytest.mark.parametrize(("weight", "mode"), [*TABLES, ("int4 g8", "clip"), ("int4 g8", None)])
def test_an_embedding_that_is_also_the_head(weight, mode):
    parameters, ids = {"table": normal(24, 64)}, jnp.asarray([[0, 5, 23], [7, 99, 5]])

    def tied(p, ids):
        rows = jnp.take(p["table"], ids, axis=0, mode=mode) if mode else p["table"][ids]
        return rows, jnp.nan_to_num(rows) @ p["table"].T

    run, quantized = fb.jax.quantize(tied, parameters, [fb.Rule("table", weight=weight)], ids)
    assert [row.kind for row in run.table] == ["embedding", "linear"]
    assert len({row.becomes for row in run.table}) == 1
    want = tied(fb.jax.dequantize(quantized), ids)
    rows, scores = run(quantized, ids)
    np.testing.assert_array_equal(rows, want[0])
    np.testing.assert_allclose(scores, want[1], rtol=1e-5, atol=1e-5)


def test_rows_of_an_embedding_are_picked_before_they_are_dequantized():
    parameters, ids = {"table": normal(1000, 64)}, jnp.asarray([3, 4])
    run, quantized = fb.jax.quantize(
        lambda p, ids: p["table"][ids], parameters, [fb.Rule("table", weight="int4 g16")], ids
    )
    (whole,) = jax.make_jaxpr(run)(quantized, ids).eqns
    sizes = [own.aval.size for equation in whole.params["jaxpr"].eqns for own in equation.outvars]
    assert max(sizes) < 1000


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_that_vmap_picks_and_tables_that_lie_on_their_side(transposed):
    parameters, ids = {"table": normal(24, 64) if not transposed else normal(64, 24)}, jnp.asarray([0, 5, 23])

    def pick(p, ids):
        if transposed:
            return jnp.take(p["table"], ids, axis=1)
        return jax.vmap(lambda own: p["table"][own])(ids)

    run, quantized = fb.jax.quantize(pick, parameters, [fb.Rule(kind="embedding", weight="int4 g16")], ids)
    assert [(row.kind, row.shape) for row in run.table] == [("embedding", (24, 64))]
    np.testing.assert_array_equal(run(quantized, ids), pick(fb.jax.dequantize(quantized), ids))


def test_inputs_have_gradients_through_the_codes():
    run, quantized = fb.jax.quantize(matmul, W, W8A8, X)
    want = jax.grad(lambda x: matmul(fb.jax.dequantize(quantized), x).sum())(X)
    np.testing.assert_allclose(jax.grad(lambda x: run(quantized, x).sum())(X), want, rtol=1e-5)
    static, other = fb.jax.quantize(
        matmul, W, [fb.Rule("w", weight="int8", input="int8 static")], X, calibration=[0.5 * X]
    )
    cut = jax.grad(lambda x: static(other, x).sum())(X)
    outside = (0.5 * X.min() > X) | (0.5 * X.max() < X)
    assert 0 < int(outside.sum()) < X.size
    # Half a step beyond the range still counts as inside; none of these lies there.
    np.testing.assert_allclose(cut, jnp.where(outside, 0.0, want), rtol=1e-4, atol=1e-5)


def test_what_cannot_be_done_is_said():
    with pytest.raises(RecipeError, match="says neither `weight` nor `keep`"):
        fb.jax.quantize(matmul, W, [fb.Rule("w", input="int8")], X)
    with pytest.raises(CalibrationError, match="needs data"):
        fb.jax.quantize(matmul, W, [fb.Rule("w", weight="int8", input="int8 static")], X)
    with pytest.raises(NotYetError, match="output"):
        fb.jax.quantize(matmul, W, [fb.Rule("w", weight="int8", output="int8")], X)
    with pytest.raises(NotYetError, match="rotation"):
        fb.jax.quantize(matmul, W, fb.Recipe([fb.Rule("w", weight="int8")], transforms=["rotation"]), X)
    with pytest.raises(NonFiniteError, match=r"^w holds NaN"):
        fb.jax.quantize(matmul, {"w": W["w"].at[3, 3].set(jnp.nan)}, W8A8, X)
    with pytest.raises(PlanError, match="in_features 32 is not a multiple of group size 24"):
        fb.jax.quantize(matmul, W, [fb.Rule("w", weight="int4 g24")], X)


@pytest.mark.parametrize("weight", ["int8", "int4 g16", "mxfp4"])
def test_matrices_are_dequantized_one_by_one_not_all_at_first(weight):
    own, x = [normal(64, 64, seed=at) / 8 for at in range(12)], normal(4, 64)

    def deep(p, x):
        for w in p:
            x = jnp.tanh(x @ w)
        return x

    run, quantized = fb.jax.quantize(deep, own, [fb.Rule(".*", weight=weight)], x)
    compiled = jax.jit(run).lower(quantized, x).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 3 * own[0].nbytes
    np.testing.assert_allclose(compiled(quantized, x), deep(fb.jax.dequantize(quantized), x), rtol=1e-5, atol=1e-5)
    # What is not a number in one sample is none of the others' business.
    broken = run(quantized, x.at[0, 0].set(jnp.nan))
    assert np.isnan(broken[0]).all()
    np.testing.assert_array_equal(broken[1:], run(quantized, x)[1:])
