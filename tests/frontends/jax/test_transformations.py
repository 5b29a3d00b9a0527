"""A quantized function gives what the float function gives for the values of the codes, however it is built."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fewbit as fb
from fewbit.qtensor import quantize

INT4 = [fb.Rule(".*", weight="int4 g8")]


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = normal(4, 16, seed=9)


@jax.custom_vjp
def tripled(x, w):
    return x @ w


def _backward(kept, change):
    x, w = kept
    return 3.0 * change @ w.T, x.T @ change


tripled.defvjp(lambda x, w: (x @ w, (x, w)), _backward)


@jax.custom_jvp
def doubled(x, w):
    return x @ w


doubled.defjvp(lambda own, change: (own[0] @ own[1], 2.0 * change[0] @ own[1] + own[0] @ change[1]))


def scanned(p, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), h.sum()), x, p["w"])


def scanned_backwards(p, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), h.sum()), x, p["w"], reverse=True)


def scanned_layers(p, x):
    def layer(h, own):
        return jax.nn.relu(h @ own["w"] * own["scale"]), None

    return jax.lax.scan(layer, x, {"w": p["w"], "scale": jnp.arange(1.0, 4.0)})[0]


def nested_scan(p, x):
    outer = p["w"].reshape(1, 3, 16, 16)
    return jax.lax.scan(lambda h, ws: (jax.lax.scan(lambda g, w: (g @ w, None), h, ws)[0], None), x, outer)[0]


def unrolled(p, x):
    for layer in range(3):
        x = jnp.sin(x @ p["w"][layer])
    return x


def indexed(p, x):
    return jax.lax.fori_loop(0, 3, lambda layer, h: jnp.tanh(h @ p["w"][layer]), x)


def carried(p, x):
    def step(state):
        count, w, h = state
        return count + 1, w, jnp.tanh(h @ w)

    return jax.lax.while_loop(lambda state: state[0] < 3, step, (0, p["w"][1], x))[2]


def branched(p, x):
    return jax.lax.cond(x.sum() > 100.0, lambda h, w: h, lambda h, w: h @ w, x, p["w"][0])


def rematerialized(p, x):
    return jax.checkpoint(lambda h, w: jnp.sin(h @ w))(x, p["w"][0])


def scanned_remat(p, x):
    return jax.lax.scan(jax.checkpoint(lambda h, w: (jnp.tanh(h @ w), None)), x, p["w"])[0]


def jitted(p, x):
    return jax.jit(lambda h, w: jax.jit(jnp.matmul)(h, w.T).astype(jnp.bfloat16))(x, p["w"][2])


def ensemble(p, x):
    return jax.vmap(lambda w: x @ w)(p["w"])


def einsums(p, x):
    heads = jnp.einsum("td,ndk->ntk", x, p["w"].reshape(3, 16, 16))
    return heads.sum(0)


def scaled(p, x):
    return x @ (p["w"][0] * 0.5 / jnp.float32(4.0)) + x @ -p["w"][1]


def weight_first(p, x):
    return p["w"][0].T @ x.T


def scaled_stack(p, x):
    return jax.lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, p["w"] * x.sum() * 0.1)[0]


def a_stack_of_one(p, x):
    return x @ p["w"][:1][0] + jax.lax.fori_loop(
        0, 1, lambda at, h: h @ jax.lax.dynamic_slice_in_dim(p["w"][1:2], at, 1)[0], x
    )


def with_derivatives(p, x):
    return doubled(tripled(x, p["w"][0]), p["w"][1])


FUNCTIONS = [
    scanned, scanned_backwards, scanned_layers, nested_scan, unrolled, indexed, carried, branched, rematerialized,
    scanned_remat, jitted, ensemble, einsums, scaled, weight_first, with_derivatives,
    scaled_stack, a_stack_of_one,
]  # fmt: skip
STACKED = {"w": normal(3, 16, 16)}


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda own: own.__name__)
def test_it_equals_the_float_function_on_the_values_of_the_codes(function):
    run, quantized = fb.jax.quantize(function, STACKED, INT4, X)
    own = quantized["w"]
    assert own.arrays["codes"].size == STACKED["w"].size // 2  # two codes a byte
    assert own.arrays["codes"].dtype == jnp.uint8
    assert all(row.becomes == "int4 g8" for row in run.table)
    floats = fb.jax.dequantize(quantized)
    assert not np.array_equal(floats["w"], STACKED["w"])
    expected = function(floats, X)
    for want, got in zip(jax.tree.leaves(expected), jax.tree.leaves(jax.jit(run)(quantized, X)), strict=True):
        assert want.dtype == got.dtype
        # The compiler may sum in another order than the operations do one by one.
        np.testing.assert_allclose(np.float32(got), np.float32(want), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("function", [scanned_layers, carried, with_derivatives, scanned_remat])
def test_inputs_have_the_gradients_of_the_float_function(function):
    run, quantized = fb.jax.quantize(function, STACKED, INT4, X)
    floats = fb.jax.dequantize(quantized)
    if function is carried:  # no reverse mode through a while loop
        want, got = (
            jax.jvp(lambda x, f=f, p=p: f(p, x), (X,), (X,))[1] for f, p in ((function, floats), (run, quantized))
        )
    else:
        want = jax.grad(lambda x: function(floats, x).sum())(X)
        got = jax.grad(lambda x: run(quantized, x).sum())(X)
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_each_matrix_of_a_stack_is_quantized_by_itself():
    _, quantized = fb.jax.quantize(scanned_layers, STACKED, INT4, X)
    for own, matrix in zip(quantized["w"].qtensors(), np.asarray(STACKED["w"]), strict=True):
        alone = quantize(matrix.T, own.scheme)
        np.testing.assert_array_equal(own.codes, alone.codes)
        np.testing.assert_array_equal(own.scale, alone.scale)


def test_a_derivative_of_its_own_is_kept():
    run, quantized = fb.jax.quantize(lambda p, x: tripled(x, p["w"][0]), STACKED, INT4, X)
    plain, _ = fb.jax.quantize(lambda p, x: x @ p["w"][0], STACKED, INT4, X)
    own, other = (jax.grad(lambda x, f=f: f(quantized, x).sum())(X) for f in (run, plain))
    np.testing.assert_allclose(own, 3.0 * other, rtol=1e-6)


def test_it_maps_over_a_batch_and_over_a_stack_of_parameters():
    def one(p, x):
        return jnp.tanh(x @ p["w"])

    run, quantized = fb.jax.quantize(one, {"w": STACKED["w"][0]}, INT4, X[0])
    # A product of a matrix sums in another order than one of a vector.
    np.testing.assert_allclose(jax.vmap(run, (None, 0))(quantized, X), run(quantized, X), rtol=1e-5)
    both = jax.tree.map(lambda own: jnp.stack([own, own]), quantized)
    mapped = jax.vmap(run, (0, None))(both, X)
    np.testing.assert_allclose(mapped[1], run(quantized, X), rtol=1e-5)


def test_it_is_exported_and_runs_from_its_bytes():
    run, quantized = fb.jax.quantize(scanned_layers, STACKED, [fb.Rule("w", weight="int8", input="int8")], X)
    leaves, tree = jax.tree.flatten(quantized)
    exported = jax.export.export(jax.jit(lambda own, x: run(tree.unflatten(own), x)))(leaves, X)
    again = jax.export.deserialize(exported.serialize())
    np.testing.assert_array_equal(again.call(leaves, X), jax.jit(run)(quantized, X))


def test_other_shapes_are_traced_anew():
    def by_length(p, x):
        return (x @ p["w"][0]) * x.shape[0]

    run, quantized = fb.jax.quantize(by_length, STACKED, INT4, X)
    np.testing.assert_allclose(run(quantized, X[:2]), by_length(fb.jax.dequantize(quantized), X[:2]), rtol=1e-6)


def test_shapes_alone_give_the_shapes_of_the_quantized_parameters():
    rules = [fb.Rule("w", weight="int4 g8 asym", input="int8 static")]
    shapes = jax.tree.map(lambda own: jax.ShapeDtypeStruct(own.shape, own.dtype), STACKED)
    _, abstract = fb.jax.quantize(unrolled, shapes, rules, jax.ShapeDtypeStruct(X.shape, X.dtype))
    _, quantized = fb.jax.quantize(unrolled, STACKED, rules, X, calibration=[X])
    assert jax.tree.structure(abstract) == jax.tree.structure(quantized)
    for want, got in zip(jax.tree.leaves(quantized), jax.tree.leaves(abstract), strict=True):
        assert (want.shape, want.dtype) == (got.shape, got.dtype)


def test_quantizing_can_itself_be_traced():
    def codes(p):
        return fb.jax.quantize(unrolled, p, INT4, X)[1]

    _, quantized = fb.jax.quantize(unrolled, STACKED, INT4, X)
    for want, got in zip(jax.tree.leaves(quantized), jax.tree.leaves(jax.jit(codes)(STACKED)), strict=True):
        np.testing.assert_array_equal(got, want)
