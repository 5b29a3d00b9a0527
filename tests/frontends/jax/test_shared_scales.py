"""Parameters that multiply the same numbers have one global scale, as layers of PyTorch have."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import fewbit as fb

RULES = [fb.Rule(kind="linear", weight="nvfp4")]


def normal(seed, *shape, scale=1.0):
    return jax.random.normal(jax.random.key(seed), shape) * scale


def unit(packed):
    """Return the float32 scales above the scales, by matrix of the stack."""
    return np.asarray(packed.arrays["scale.scale"]).ravel()


def heads(parameters, x):
    flat = x.reshape(-1, x.shape[-1])
    q, k = x @ parameters["q"], jnp.einsum("bti,io->bto", x.astype(jnp.float32), parameters["k"])
    return ((q * k).reshape(flat.shape[0], -1) + flat @ parameters["v"]) @ parameters["o"]


@pytest.fixture
def parameters():
    sizes = {"q": 1.0, "k": 3.0, "v": 0.2}
    projections = {name: normal(place, 32, 16, scale=size) for place, (name, size) in enumerate(sizes.items())}
    return {**projections, "o": normal(7, 16, 32, scale=0.5)}


def test_what_reads_one_input_in_any_shape_shares_and_what_follows_does_not(parameters):
    run, quantized = fb.jax.quantize(heads, parameters, RULES, normal(9, 2, 3, 32))
    units = {name: float(unit(quantized[name])[0]) for name in parameters}
    assert units["q"] == units["k"] == units["v"] != units["o"]
    alone = {
        name: fb.jax.quantize(heads, {**parameters}, [fb.Rule(name, weight="nvfp4")], normal(9, 2, 3, 32))[1]
        for name in "qk"
    }
    assert units["k"] == float(unit(alone["k"]["k"])[0])  # that of the largest magnitude
    assert units["q"] != float(unit(alone["q"]["q"])[0])
    notes = {row.weight: row.notes for row in run.table}
    assert notes["q"] == ("one global scale with k and v",)
    assert notes["o"] == ()


def test_matrices_of_a_stack_share_with_those_of_their_own_step():
    stacks = {"up": normal(0, 3, 32, 16), "gate": normal(1, 3, 32, 16) * jnp.asarray([1.0, 4.0, 16.0])[:, None, None]}
    down = normal(2, 3, 16, 32, scale=0.05)

    def model(parameters, x):
        def block(x, own):
            return x + ((x @ own["up"]) * (x @ own["gate"])) @ own["down"], None

        return jax.lax.scan(block, x, parameters)[0]

    _, quantized = fb.jax.quantize(model, {**stacks, "down": down}, RULES, normal(9, 2, 32))
    up, gate = unit(quantized["up"]), unit(quantized["gate"])
    np.testing.assert_array_equal(up, gate)
    assert len(set(up.tolist())) == 3
    assert not (unit(quantized["down"]) == up).any()


def test_another_step_of_a_loop_is_another_input():
    def model(parameters, x):
        first = x @ parameters["before"]
        after, _ = jax.lax.scan(lambda x, own: (jnp.tanh(x @ own), None), x, parameters["stack"])
        return first + after

    both = {"before": normal(0, 32, 32), "stack": normal(1, 2, 32, 32, scale=3.0)}
    run, _ = fb.jax.quantize(model, both, RULES, normal(9, 2, 32))
    assert [row.notes for row in run.table] == [(), ()]


def test_schemes_that_differ_share_nothing(parameters):
    rules = [fb.Rule("q", weight="nvfp4 mse"), *RULES]
    run, quantized = fb.jax.quantize(heads, parameters, rules, normal(9, 2, 3, 32))
    notes = {row.weight: row.notes for row in run.table}
    assert notes["q"] == ()
    assert notes["k"] == ("one global scale with v",)
    assert unit(quantized["q"])[0] != unit(quantized["k"])[0]


def test_under_jit_each_keeps_its_own_and_nothing_else_is_said(parameters):
    tables = []

    @jax.jit
    def packed(parameters, x):
        run, quantized = fb.jax.quantize(heads, parameters, RULES, x)
        tables.append(run.table)
        return quantized

    quantized = packed(parameters, normal(9, 2, 3, 32))
    assert unit(quantized["q"])[0] != unit(quantized["k"])[0]
    assert all(row.notes == () for row in tables[0])
