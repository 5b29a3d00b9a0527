"""Which operations multiply by a parameter, what the table says of them, and what cannot be reached."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import fewbit as fb
from fewbit.activation import Activation
from fewbit.errors import PlanError
from fewbit.schemes.notation import parse_input_scheme

W8A8 = [fb.Rule(".*", weight="int8", input="int8")]


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


X = normal(6, 32, seed=9)
W = {"w": normal(32, 16)}


def matmul(p, x):
    return x @ p["w"]


def rounded(values, text):
    return Activation(scheme=parse_input_scheme(text).stored_as("float32")).rounded(np.asarray(values))


def test_a_matrix_that_inputs_choose_is_an_error():
    def experts(p, x):
        return jnp.einsum("bd,bdo->bo", x, p["w"][jnp.argmax(x, -1) % 3])

    with pytest.raises(PlanError, match=r"^w: a rule quantizes it, and it is changed by 'gather' before"):
        fb.jax.quantize(experts, {"w": normal(3, 32, 8)}, W8A8, X)


UNREACHED = {
    "mul": lambda p, x: x @ (p["w"] * (X[:1].T > 0)),
    "concatenate": lambda p, x: x @ jnp.concatenate([p["w"], p["w"]], axis=1),
    "scan": lambda p, x: x @ lax.scan(lambda w, _: (w * 0.5 + 1.0, None), p["w"], None, 2)[0],
    "exp": lambda p, x: jax.jit(lambda h, w: h @ jnp.exp(w))(x, p["w"]),
    "cond": lambda p, x: x @ lax.cond(x.sum() > 0, lambda w: w, lambda w: 2.0 * w, p["w"]) + x @ jnp.exp(p["w"]),
    "dot_general": lambda p, x: x @ (p["w"] @ normal(16, 16)),
}


@pytest.mark.parametrize("operation", UNREACHED)
def test_a_weight_that_is_changed_before_it_is_multiplied_with_is_an_error(operation):
    function = UNREACHED[operation]
    with pytest.raises(PlanError, match=r"^w: a rule quantizes it, and it is changed by ") as caught:
        fb.jax.quantize(function, W, W8A8, X)
    assert repr(operation if operation != "cond" else "exp") in str(caught.value)
    # Kept, it is no problem.
    both = {**W, "other": W["w"]}
    rules = [fb.keep("w"), fb.Rule("other", weight="int8")]
    run, quantized = fb.jax.quantize(lambda p, x: function(p, x).sum() + x @ p["other"], both, rules, X)
    assert quantized["w"] is both["w"]
    becomes = {row.weight: row.becomes for row in run.table}
    assert (becomes["w"], becomes["other"]) == ("float", "int8 channel")


def test_a_weight_inside_of_what_is_not_looked_into_is_an_error():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))

    @jax.jit
    def sharded(p, x):
        spec = jax.sharding.PartitionSpec("data")
        own = jax.shard_map(matmul, mesh=mesh, in_specs=(jax.sharding.PartitionSpec(), spec), out_specs=spec)
        return own(p, x)

    with pytest.raises(PlanError, match=r"^w: a rule .* changed by 'shard_map', which fewbit does not look"):
        fb.jax.quantize(sharded, W, W8A8, X)


def test_a_weight_that_is_multiplied_along_both_axes():
    def both_ways(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"].T

    run, quantized = fb.jax.quantize(both_ways, W, [fb.Rule("w", weight="int4 g16")], X)
    assert [row.shape for row in run.table] == [(16, 32), (32, 16)]
    want = both_ways(fb.jax.dequantize(quantized), X)
    np.testing.assert_allclose(run(quantized, X), want, rtol=1e-5, atol=1e-5)
    with pytest.raises(PlanError, match=r"^w: operations multiply it along different axes"):
        fb.jax.quantize(both_ways, W, W8A8, X)


def test_a_parameter_that_is_a_stack_here_and_a_matrix_there_is_an_error():
    stack = {"w": normal(2, 32, 32)}

    def two_ways(p, x):
        return x @ p["w"][0] + (jnp.ones((6, 64)) * x.sum()) @ p["w"].reshape(64, 32)

    with pytest.raises(PlanError, match=r"^w: it is a stack"):
        fb.jax.quantize(two_ways, stack, W8A8, X)


def test_a_number_that_is_a_parameter_may_scale_a_weight():
    parameters = {**W, "gain": jnp.float32(3.0)}

    def scaled(p, x):
        return x @ (p["w"] * p["gain"])

    run, quantized = fb.jax.quantize(scaled, parameters, W8A8, X)
    want = rounded(X, "int8") @ scaled(fb.jax.dequantize(quantized), jnp.eye(32))
    np.testing.assert_allclose(run(quantized, X), want, rtol=1e-5, atol=1e-3)


def test_biases_and_norms_are_no_layers():
    parameters = {**W, "bias": normal(16), "norm": normal(32)}

    def layer(p, x):
        return (x * p["norm"]) @ p["w"] + p["bias"]

    run, quantized = fb.jax.quantize(layer, parameters, W8A8, X)
    assert [row.weight for row in run.table] == ["w"]
    assert quantized["bias"] is parameters["bias"]
    with pytest.raises(PlanError, match="matches no layer; the layers are: w "):
        fb.jax.quantize(layer, parameters, [fb.Rule("bias", weight="int8")], X)


def test_a_parameter_that_is_also_returned_comes_back_as_floats():
    run, quantized = fb.jax.quantize(lambda p, x: (x @ p["w"], p), W, W8A8, X)
    _, returned = run(quantized, X)
    np.testing.assert_array_equal(returned["w"], fb.jax.dequantize(quantized)["w"])
    assert run.table[0].notes == ("also returned, as floats",)


def test_rules_match_the_scopes_of_operations_too():
    def scoped(p, x):
        with jax.named_scope("mlp"), jax.named_scope("up"):
            h = x @ p["w"]
        return h @ p["v"]

    parameters = {**W, "v": normal(16, 8)}
    run, _ = fb.jax.quantize(scoped, parameters, [fb.Rule(r"mlp\.up", weight="int8")], X)
    assert [(row.weight, row.becomes, row.scope) for row in run.table] == [
        ("w", "int8 channel", "mlp.up"),
        ("v", "float", ""),
    ]


def test_scopes_are_named_without_the_transformations_around_them():
    def scoped(p, x):
        with jax.named_scope("mlp"):
            return jax.vmap(lambda row: row @ p["w"])(x)

    run, _ = fb.jax.quantize(jax.vmap(scoped, (None, 0)), W, [fb.Rule("mlp", weight="int8")], X[None])
    assert run.table[0].scope == "mlp"


def test_the_table_has_products_without_a_parameter():
    run, _ = fb.jax.quantize(lambda p, x: (x @ p["w"]) @ (x @ p["w"]).T, W, W8A8, X)
    assert [(row.weight, row.becomes) for row in run.table] == [("w", "int8 channel, input int8 token asym")] * 2 + [
        ("", "float")
    ]
    assert "no parameter" in str(run.table[-1])
