"""Training with rounding in the loop: the values of the quantized function, gradients straight through the rounding."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fewbit as fb
from fewbit.errors import NotYetError


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


PARAMETERS = {"kernel": normal(3, 3, 2, 8), "stack": normal(2, 8, 8, seed=1), "bias": jnp.zeros(8)}
IMAGES = normal(16, 6, 6, 2, seed=2)


def model(p, x):
    x = lax.conv_general_dilated(x, p["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x.mean((1, 2)) + p["bias"], p["stack"])[0]


@pytest.mark.parametrize(
    ("weight", "given"), [("int4 g2", None), ("int8", "int8"), ("int2 channel", "e4m3"), ("nf4 g2", "int8 tensor")]
)
def test_it_gives_what_the_quantized_function_will_give(weight, given):
    rules = [fb.Rule(".*", weight=weight, input=given)]
    trained = fb.jax.prepare_qat(model, PARAMETERS, rules, IMAGES)
    run, quantized = fb.jax.quantize(model, PARAMETERS, rules, IMAGES)
    np.testing.assert_allclose(trained(PARAMETERS, IMAGES), run(quantized, IMAGES), rtol=1e-4, atol=1e-5)


def test_gradients_pass_straight_through():
    p, x = {"w": normal(8, 4)}, normal(5, 8, seed=3)
    trained = fb.jax.prepare_qat(lambda p, x: x @ p["w"], p, [fb.Rule("w", weight="int8 channel narrow")], x)
    own = jax.grad(lambda p: (trained(p, x) * normal(5, 4, seed=4)).sum())(p)
    # No weight lies beyond the range of a narrow absmax scale: each has its whole gradient.
    np.testing.assert_allclose(own["w"], x.T @ normal(5, 4, seed=4), rtol=1e-5, atol=1e-5)


def test_training_makes_up_for_the_rounding():
    rules = [fb.Rule(".*", weight="int2 channel")]
    trained = fb.jax.prepare_qat(model, PARAMETERS, rules, IMAGES)
    wanted = model(PARAMETERS, IMAGES)

    @jax.jit
    def step(p, _):
        loss, change = jax.value_and_grad(lambda own: jnp.square(trained(own, IMAGES) - wanted).mean())(p)
        return jax.tree.map(lambda own, by: own - 0.01 * by, p, change), loss

    after, losses = lax.scan(step, PARAMETERS, None, 60)
    run, quantized = fb.jax.quantize(model, after, rules, IMAGES)
    before, first = fb.jax.quantize(model, PARAMETERS, rules, IMAGES)
    error, start = (float(jnp.square(f(q, IMAGES) - wanted).mean()) for f, q in ((run, quantized), (before, first)))
    assert error < 0.5 * start
    np.testing.assert_allclose(losses[0], start, rtol=1e-4)


def test_what_training_does_not_have_is_said():
    for rule, why in {
        fb.Rule("stack", weight="int8", input="int8 static", algorithm="gptq"): "rounds to nearest",
        fb.Rule("stack", weight="kmeans2 channel"): "searched on the host",
        fb.Rule("stack", weight="int4 g4 float-zero", algorithm="hqq"): "rounds to nearest",
    }.items():
        with pytest.raises(NotYetError, match=why):
            fb.jax.prepare_qat(model, PARAMETERS, [rule], IMAGES)
