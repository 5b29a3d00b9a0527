"""Numbers move along links of a function: found by data flow, proven by an exact fold, matrix by matrix of a stack."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax import lax
from torch import nn

import fewbit as fb
from fewbit.errors import CalibrationError, NotYetError, PlanError
from fewbit.frontends.jax.link_scope import LinkScope
from fewbit.frontends.jax.parameters import Function

WIDTH, HEADS, HIDDEN, DEPTH = 8, 2, 12, 2


def normal(*shape, seed=0):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), jnp.float32)


def attended(n, p):
    q, k, v = ((n @ p[name] + p.get(f"{name}_bias", 0.0)).reshape(*n.shape[:2], HEADS, -1) for name in ("q", "k", "v"))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(n.shape) @ p["o"]


def block(h, p):
    mean, variance = h.mean(-1, keepdims=True), h.var(-1, keepdims=True)
    n = (h - mean) * (lax.rsqrt(variance + 1e-6) * p["norm"]["scale"]) + p["norm"]["bias"]  # as Flax has it
    h = h + attended(n, p)
    n = h * lax.rsqrt(jnp.square(h).mean(-1, keepdims=True) + 1e-6) * p["gain"]
    return h + (jax.nn.silu(n @ p["gate"]) * (n @ p["up"])) @ p["down"], None


def stack(p, x):
    return lax.scan(jax.checkpoint(block), x, p)[0]


SHAPES = {"q": (WIDTH, WIDTH), "k": (WIDTH, WIDTH), "v": (WIDTH, WIDTH), "o": (WIDTH, WIDTH), "gate": (WIDTH, HIDDEN),
          "up": (WIDTH, HIDDEN), "down": (HIDDEN, WIDTH), "v_bias": (WIDTH,), "gain": (WIDTH,)}  # fmt: skip
P = {name: normal(DEPTH, *shape, seed=at) for at, (name, shape) in enumerate(SHAPES.items())}
P["norm"] = {"scale": normal(DEPTH, WIDTH, seed=20), "bias": normal(DEPTH, WIDTH, seed=21)}
X = normal(2, 5, WIDTH, seed=30)


def scope_of(function, parameters, *inputs):
    return LinkScope(function, parameters, [inputs], Function.traced(function, parameters, inputs), {})


def pairs(scope):
    return {(link.producer, *link.consumers) for link in scope.links}


@pytest.fixture(scope="module")
def scope():
    return scope_of(stack, P, X)


def test_links_of_a_transformer_are_found_matrix_by_matrix(scope):
    found = {tuple(sorted(pair)) for pair in pairs(scope)}
    wanted = [("norm.scale", "q", "k", "v"), ("v", "o"), ("gain", "gate", "up"), ("up", "down")]
    assert found == {tuple(sorted(f"{name}[{at}]" for name in link)) for link in wanted for at in range(DEPTH)}


def test_folds_leave_the_function_as_it_is():
    own = scope_of(stack, P, X)
    draw = np.random.default_rng(0)
    for link in own.links:
        own.rescale(link, np.exp2(draw.uniform(-3, 3, link.outputs)))
    now = own.parameters()
    assert all(np.abs(np.asarray(now[name]) - P[name]).max() > 0.1 for name in SHAPES)
    np.testing.assert_allclose(stack(now, X), stack(P, X), rtol=1e-3, atol=1e-4)
    # Half of a fold is none.
    assert np.abs(stack({**now, "down": P["down"]}, X) - stack(P, X)).max() > 0.1


@pytest.mark.parametrize(
    ("between", "links"),
    [
        (jax.nn.relu, {("a", "b")}),
        (lambda x: jnp.where(x > 0, x, 0.1 * x), {("a", "b")}),
        (lambda x: x[..., ::-1], {("a", "b")}),
        (lambda x: jnp.clip(x, 0.0, 6.0), set()),  # a candidate, and bends
        (jnp.tanh, set()),
        (lambda x: x + 1.0, set()),
        (lambda x: x * x, set()),
    ],
    ids=["relu", "leaky", "reversed", "relu6", "tanh", "shifted", "squared"],
)
def test_a_link_is_what_a_fold_leaves_as_it_is(between, links):
    p = {"a": normal(4, 6), "b": normal(6, 3, seed=1)}
    own = scope_of(lambda p, x: between(x @ p["a"]) @ p["b"], p, 3.0 * normal(5, 4, seed=2))
    assert pairs(own) == links
    for link in own.links:
        assert link.channels.tolist() == ([5, 4, 3, 2, 1, 0] if between(jnp.arange(2.0))[0] else [0, 1, 2, 3, 4, 5])


def grouped(p, x):
    q, k, v = ((x @ p[name]).reshape(*x.shape[:2], -1, 2) for name in ("q", "k", "v"))
    return jax.nn.dot_product_attention(q, k, v, is_causal=True).reshape(x.shape) @ p["o"]


def repeated(p, x):
    q, k, v = ((x @ p[name]).reshape(*x.shape[:2], -1, 2) for name in ("q", "k", "v"))
    k, v = (jnp.repeat(own, 2, axis=2) for own in (k, v))
    weights = jax.nn.softmax(jnp.einsum("bqhd,bkhd->bhqk", q, k))
    return jnp.einsum("bhqk,bkhd->bqhd", weights, v).reshape(x.shape) @ p["o"]


@pytest.mark.parametrize("attention", [grouped, repeated])
def test_a_value_that_several_heads_read_is_several_inputs(attention):
    p = {name: normal(8, 8 if name in "qo" else 4, seed=at) for at, name in enumerate("qkvo")}
    (link,) = scope_of(attention, p, normal(2, 3, 8, seed=9)).links
    assert (link.producer, link.consumers) == ("v", ("o",))
    assert link.channels.tolist() == [0, 1, 0, 1, 2, 3, 2, 3]


def test_an_index_of_a_stack_links_as_a_step_of_a_scan():
    def indexed(p, x):
        for at in range(2):
            x = x + jax.nn.relu(x @ p["a"][at]) @ p["b"][at]
        return x

    own = scope_of(indexed, {"a": normal(2, 4, 6), "b": normal(2, 6, 4, seed=1)}, normal(3, 4, seed=2))
    assert pairs(own) == {("a[0]", "b[0]"), ("a[1]", "b[1]")}


def test_what_something_else_reads_is_no_link():
    p, x = {"a": normal(4, 4), "b": normal(4, 4, seed=1)}, normal(5, 4, seed=2)
    assert pairs(scope_of(lambda p, x: (x @ p["a"]) @ p["b"], p, x)) == {("a", "b")}
    assert not pairs(scope_of(lambda p, x: (y := x @ p["a"]) @ p["b"] + y, p, x))
    assert not pairs(scope_of(lambda p, x: ((y := x @ p["a"]) @ p["b"], y), p, x))
    assert not pairs(scope_of(lambda p, x: (x @ p["a"]) @ p["b"] + (x @ p["b"]).sum(), p, x))


class Mlp(nn.Module):
    """A norm and two layers, whose numbers the function has too."""

    def __init__(self, p):
        super().__init__()
        self.norm, self.up, self.down = nn.LayerNorm(16, eps=1e-6), nn.Linear(16, 32), nn.Linear(32, 16, bias=False)
        state = {"norm.weight": p["norm"]["scale"], "norm.bias": p["norm"]["bias"], "up.weight": p["up"]["kernel"].T,
                 "up.bias": p["up"]["bias"], "down.weight": p["down"]["kernel"].T}  # fmt: skip
        self.load_state_dict({name: torch.tensor(np.asarray(own)) for name, own in state.items()})

    def forward(self, x):
        return self.down(torch.relu(self.up(self.norm(x))))


def mlp(p, x):
    centred = x - x.mean(-1, keepdims=True)
    n = centred * lax.rsqrt(jnp.square(centred).mean(-1, keepdims=True) + 1e-6) * p["norm"]["scale"] + p["norm"]["bias"]
    return jax.nn.relu(n @ p["up"]["kernel"] + p["up"]["bias"]) @ p["down"]["kernel"]


WEIGHTS = {
    # Outliers that a norm brings forth, as those of language models do.
    "norm": {"scale": jnp.ones(16).at[3].set(20.0).at[7].set(8.0), "bias": normal(16, seed=1) * 0.1},
    "up": {"kernel": normal(16, 32, seed=2), "bias": normal(32, seed=3)},
    "down": {"kernel": normal(32, 16, seed=4)},
}
ROWS = [normal(24, 16, seed=at) for at in (5, 6)]


@pytest.mark.parametrize(
    ("transform", "weight", "given"),
    [("smoothquant", "int8", "int8"), ({"name": "smoothquant", "alpha": "search"}, "int8", "int8 static"),
     ("awq", "int3 g8 asym", None), ("equalization", "int4 tensor", None)],
    ids=["smoothquant", "searched", "awq", "equalization"],
)  # fmt: skip
def test_transforms_do_what_they_do_to_a_module_of_pytorch(transform, weight, given):
    recipe = fb.Recipe([fb.Rule("up.*|down.*", weight=weight, input=given)], transforms=[transform])
    run, quantized = fb.jax.quantize(mlp, WEIGHTS, recipe, ROWS[0], calibration=ROWS)
    result = fb.quantize(
        Mlp(WEIGHTS), recipe, calibration=[torch.tensor(np.asarray(own)) for own in ROWS], dtype="float32"
    )
    # Sums of float32 in another order move a factor by a rounding, and a gain has 8 bits.
    np.testing.assert_allclose(quantized["norm"]["scale"], result.model.norm.weight.detach().numpy(), rtol=2**-7)
    assert (np.asarray(quantized["norm"]["scale"]) == WEIGHTS["norm"]["scale"]).all() == (transform == "equalization")
    theirs = {name: getattr(result.model, name).qtensor.dequantize().numpy().T for name in ("up", "down")}
    ours = fb.jax.dequantize(quantized)
    for name, want in theirs.items():
        step = np.abs(want).max() / (2 if "int3" in weight else 7)
        np.testing.assert_allclose(ours[name]["kernel"], want, atol=step, rtol=0)  # one code, on ties
    wanted = [own for own in result.report.remarks if "rescaled" in own]
    assert len(wanted) == 1
    verb = wanted[0].split(":")[0]
    said = [own for own in run.notes if own.startswith(verb)]
    assert len(said) == 1
    assert ("2 links were rescaled" in said[0]) == ("2 links were rescaled" in wanted[0])
    assert any(verb in note for row in run.table for note in row.notes)


def test_smoothing_and_scaling_lower_the_error_of_the_output():
    def error(weight, given, transforms):
        recipe = fb.Recipe([fb.Rule("up.*|down.*", weight=weight, input=given)], transforms=transforms)
        run, quantized = fb.jax.quantize(mlp, WEIGHTS, recipe, ROWS[0], calibration=ROWS)
        return float(jnp.square(run(quantized, ROWS[0]) - mlp(WEIGHTS, ROWS[0])).mean())

    assert error("int8", "int8 static", ["smoothquant"]) < 0.7 * error("int8", "int8 static", [])
    assert error("int3 g8 asym", None, ["awq"]) < 0.9 * error("int3 g8 asym", None, [])


def test_each_matrix_of_a_stack_has_factors_of_its_own():
    recipe = fb.Recipe([fb.Rule("q|k|v|up|gate", weight="int8", input="int8")], transforms=["smoothquant"])
    run, quantized = fb.jax.quantize(stack, P, recipe, X, calibration=[X])
    factors = np.asarray(P["gain"]) / np.asarray(quantized["gain"])
    assert np.abs(np.log(factors[0] / factors[1])).max() > 0.1
    wanted = stack(P, X)
    assert jnp.abs(stack(fb.jax.dequantize(quantized), X) - wanted).mean() < 0.02 * jnp.abs(wanted).mean()
    notes = next(row.notes for row in run.table if row.weight == "up")
    assert [note.split(":")[0] for note in notes if "smoothquant" in note] == ["up[0]", "up[1]"]
    assert "smoothquant: 4 links were rescaled" in run.notes[0]


def test_what_is_missing_for_a_transform_is_said():
    with pytest.raises(PlanError, match="no rule rounds an input to a scale"):
        fb.jax.quantize(mlp, WEIGHTS, fb.Recipe([fb.Rule("up.*", weight="int8")], transforms=["smoothquant"]), ROWS[0])
    rules = [fb.Rule("up.*", weight="int8", input="int8")]
    recipe = fb.Recipe(rules, transforms=["smoothquant"])
    with pytest.raises(CalibrationError, match="a transform"):
        fb.jax.quantize(mlp, WEIGHTS, recipe, ROWS[0])
    with pytest.raises(NotYetError, match="transform rotation"):
        fb.jax.quantize(mlp, WEIGHTS, fb.Recipe(rules, transforms=["rotation"]), ROWS[0], calibration=ROWS)
    with pytest.raises(NotYetError, match="works before rounding"):
        fb.jax.prepare_qat(mlp, WEIGHTS, recipe, ROWS[0])
