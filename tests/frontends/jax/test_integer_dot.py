"""Sums of products of 8-bit codes are exact on every path, and the compiled program keeps the weight in 8 bits."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fewbit as fb
from fewbit.frontends.jax.integer_dot import integer_dot, integer_dot_and_sums


def codes(*shape, seed=0):
    return np.random.default_rng(seed).integers(-128, 128, shape).astype(np.int8)


@pytest.mark.parametrize("tokens", [(), (0,), (1,), (2,), (64,), (65,), (3, 5), (2, 40)])
def test_products_and_sums_are_those_of_whole_numbers(tokens):
    given, weight = codes(*tokens, 48), codes(7, 48, seed=1)
    weight[0] = -128
    want = weight.astype(np.int64)
    total, sums = jax.jit(integer_dot_and_sums)(given, weight)
    np.testing.assert_array_equal(total, given.astype(np.int64) @ want.T)
    np.testing.assert_array_equal(sums, want.sum(1))
    np.testing.assert_array_equal(jax.jit(integer_dot)(given, weight), total)
    assert total.dtype == sums.dtype == jnp.int32


def test_a_stack_of_matrices_by_vmap():
    given, weight = codes(3, 1, 16), codes(3, 5, 16, seed=1)
    want = np.einsum("stc,soc->sto", given.astype(np.int64), weight.astype(np.int64))
    np.testing.assert_array_equal(jax.vmap(integer_dot)(given, weight), want)
    total, sums = jax.vmap(integer_dot_and_sums)(given, weight)
    np.testing.assert_array_equal(total, want)
    np.testing.assert_array_equal(sums, weight.astype(np.int64).sum(2))


@pytest.mark.parametrize("tokens", [1, 8, 96])
@pytest.mark.parametrize("given", ["int8", "int8 sym", "int8 static"])
def test_no_copy_of_the_weight_in_32_bits_is_made(tokens, given):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(tokens, 48)), jnp.float32)
    parameters = {"w": x[0] * jnp.ones((80, 1))}

    def compiled(function, parameters):
        return jax.jit(function).lower(parameters, x).compile().as_text()

    rule = fb.Rule("w", weight="int8", input=given)
    run, quantized = fb.jax.quantize(lambda p, x: x @ p["w"].T, parameters, [rule], x, calibration=[x])
    text = compiled(run, quantized)
    assert "s8[80,48]" in text
    assert "s32[80,48]" not in text
    assert "f32[80,48]" not in text
    # Of a weight alone the same reading shows the floats.
    run, quantized = fb.jax.quantize(lambda p, x: x @ p["w"].T, parameters, [fb.Rule("w", weight="int8")], x)
    assert "f32[80,48]" in compiled(run, quantized)
