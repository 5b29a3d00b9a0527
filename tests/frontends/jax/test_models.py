"""Models of Flax NNX, Flax Linen, Equinox and Haiku are functions like any other."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fewbit as fb

X = jnp.asarray(np.random.default_rng(0).normal(size=(2, 16)), jnp.float32)
IMAGES = X.reshape(2, 4, 4, 1)


def assert_alike(run, quantized, function, inputs, tolerance):
    """Compare with the float function on the values of the codes, under jit, and from another length."""
    floats = fb.jax.dequantize(quantized)
    for own in (inputs, inputs[:1]):
        want = function(floats, own)
        np.testing.assert_allclose(jax.jit(run)(quantized, own), want, atol=tolerance, rtol=1e-5)


@pytest.mark.parametrize("given", [None, "int8"])
def test_flax_nnx(given):
    nnx = pytest.importorskip("flax.nnx")

    class Block(nnx.Module):
        def __init__(self, rngs):
            self.norm, self.up = nnx.LayerNorm(16, rngs=rngs), nnx.Linear(16, 24, rngs=rngs)
            self.down = nnx.LinearGeneral((2, 12), 16, axis=(-2, -1), rngs=rngs)

        def __call__(self, x):
            h = nnx.gelu(self.up(self.norm(x)))
            return x + self.down(h.reshape(*h.shape[:-1], 2, 12))

    class Model(nnx.Module):
        def __init__(self, rngs):
            self.blocks = nnx.List([Block(rngs) for _ in range(2)])

        def __call__(self, x):
            for block in self.blocks:
                x = block(x)
            return x

    definition, state = nnx.split(Model(nnx.Rngs(0)))

    def function(state, x):
        return nnx.merge(definition, state)(x)

    rules = [fb.Rule(r"blocks\.\d+\.(up|down)\.kernel", weight="int8", input=given)]
    run, quantized = fb.jax.quantize(function, state, rules, X)
    assert [row.weight for row in run.table] == [
        f"blocks.{at}.{name}.kernel" for at in (0, 1) for name in ("up", "down")
    ]
    assert run.table[1].shape == (16, 24)
    # Rounded inputs of 16 to 24 numbers: half a percent of each.
    assert_alike(run, quantized, function, X, 1e-5 if given is None else 0.05)
    assert isinstance(quantized, nnx.State)


@pytest.mark.parametrize("given", [None, "int8"])
def test_flax_linen(given):
    linen = pytest.importorskip("flax.linen")

    class Model(linen.Module):
        @linen.compact
        def __call__(self, x):
            x = linen.relu(linen.Conv(4, (3, 3))(x))
            x = linen.ConvTranspose(3, (2, 2), strides=(2, 2))(x)
            return linen.Dense(5, dtype=jnp.float32)(x.reshape(x.shape[0], -1))

    model = Model()
    parameters = model.init(jax.random.key(0), IMAGES)
    rules = [
        fb.Rule(kind="conv", weight="int4 channel", input=given),
        fb.Rule(r"Model\.Dense_0", weight="int8", input=given),
    ]
    run, quantized = fb.jax.quantize(model.apply, parameters, rules, IMAGES)
    assert [(row.weight, row.kind) for row in run.table] == [
        ("params.Conv_0.kernel", "conv"), ("params.ConvTranspose_0.kernel", "conv"), ("params.Dense_0.kernel", "linear")
    ]  # fmt: skip
    assert_alike(run, quantized, model.apply, IMAGES, 1e-5 if given is None else 0.05)


def test_a_linen_model_with_scanned_layers():
    linen = pytest.importorskip("flax.linen")

    class Layer(linen.Module):
        @linen.compact
        def __call__(self, x, _):
            return linen.relu(linen.Dense(16)(x)), None

    stack = linen.scan(linen.remat(Layer), variable_axes={"params": 0}, split_rngs={"params": True}, length=3)()
    parameters = stack.init(jax.random.key(0), X, None)

    def function(p, x):
        return stack.apply(p, x, None)[0]

    run, quantized = fb.jax.quantize(function, parameters, [fb.Rule(".*kernel", weight="int4 g8 asym")], X)
    assert run.table[0].stack == (3,)
    assert_alike(run, quantized, function, X, 1e-5)


@pytest.mark.parametrize("given", [None, "int8"])
def test_equinox(given):
    eqx = pytest.importorskip("equinox")
    model = eqx.nn.MLP(16, 4, 24, 2, key=jax.random.key(0))
    parameters, static = eqx.partition(model, eqx.is_array)

    def function(p, x):
        return jax.vmap(eqx.combine(p, static))(x)

    rules = [fb.keep(r"layers\.2\.weight"), fb.Rule(kind="linear", weight="int8", input=given)]
    run, quantized = fb.jax.quantize(function, parameters, rules, X)
    assert [(row.weight, row.becomes.split(",")[0]) for row in run.table] == [
        ("layers.0.weight", "int8 channel"), ("layers.1.weight", "int8 channel"), ("layers.2.weight", "float")
    ]  # fmt: skip
    assert_alike(run, quantized, function, X, 1e-5 if given is None else 0.05)


@pytest.mark.parametrize("given", [None, "int8"])
def test_haiku(given):
    hk = pytest.importorskip("haiku")

    def forward(x):
        return hk.nets.MLP([24, 4])(x)

    model = hk.without_apply_rng(hk.transform(forward))
    parameters = model.init(jax.random.key(0), X)
    run, quantized = fb.jax.quantize(model.apply, parameters, [fb.Rule(r"mlp/~/.*\.w", weight="int8", input=given)], X)
    assert [row.weight for row in run.table] == ["mlp/~/linear_0.w", "mlp/~/linear_1.w"]
    assert_alike(run, quantized, model.apply, X, 1e-5 if given is None else 0.05)
