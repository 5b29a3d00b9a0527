"""Learned ranges: the gradients of PyTorch, in a tree that any optimizer trains; at the end what training has seen."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from jax import lax
from torch import nn
from torch.func import functional_call

import fewbit as fb
from fewbit.errors import CalibrationError, NonFiniteError, NotYetError, PlanError
from fewbit.formats.integer import Int
from fewbit.ranges.grid import Grid
from fewbit.training.gradients import GRADIENTS, parse_gradient

GRIDS = {
    "symmetric": Grid(format=Int(3)),
    "asymmetric": Grid(format=Int(3, signed=False), symmetric=False),
    "stored": Grid(format=Int(4), scale_type="float16"),
}
LEARNED = ("lsq", "pact", "ewgs")


def numbers(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def normal(*shape, seed=0):
    return jnp.asarray(numbers(*shape, seed=seed))


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_values_and_gradients_are_those_of_pytorch(name, grid):
    gradient, boxes, upstream = parse_gradient(name), numbers(4, 1, 3, 8), numbers(4, 1, 3, 8, seed=1)
    # Ranges of less than the numbers, so that some are clipped at both ends.
    low, high = (sign * np.abs(numbers(4, 1, 3, 1, seed=at)) for at, sign in ((2, -1), (3, 1)))
    begun = gradient.initial(low, high, grid)

    def by_jax(values, own):
        found = gradient(values, own, grid, 8)
        return (found * upstream).sum(), found

    ours, value = jax.jit(jax.grad(by_jax, argnums=(0, 1), has_aux=True))(boxes, begun)
    values = torch.tensor(boxes, requires_grad=True)
    own = {key: torch.tensor(part, requires_grad=gradient.learns) for key, part in begun.items()}
    theirs = gradient(values, own, grid, 8)
    theirs.backward(torch.tensor(upstream))
    np.testing.assert_array_equal(value, theirs.detach().numpy())
    np.testing.assert_allclose(ours[0], values.grad.numpy(), rtol=1e-5, atol=1e-6)  # sums of eight float32
    for key in begun if gradient.learns else ():
        want = own[key].grad.numpy()
        assert np.abs(want).max() > 0
        np.testing.assert_allclose(ours[1][key], want, rtol=1e-4, atol=1e-5, err_msg=key)


class Two(nn.Module):
    """Two layers and a bend between them."""

    def __init__(self):
        super().__init__()
        self.up, self.down = nn.Linear(12, 16, bias=False), nn.Linear(16, 4, bias=False)

    def forward(self, x):
        return self.down(torch.relu(self.up(x)))


def two(p, x):
    return jax.nn.relu(x @ p["up"]["kernel"]) @ p["down"]["kernel"]


P = {"up": {"kernel": normal(12, 16)}, "down": {"kernel": normal(16, 4, seed=1)}}
X = normal(6, 3, 12, seed=2)
RULES = [
    fb.Rule("up.*", weight="int4 g4", input="int8 static"),
    fb.Rule("down.*", weight="int4 asym g8", input="uint8 static"),
]


def trained_by_both(name):
    """Return the JAX function and its tree, and a PyTorch module with the same weights and ranges."""
    trained = fb.jax.prepare_qat(two, P, RULES, X, training=fb.Training(gradient=name), calibration=[X])
    tree = trained.begin(P)
    model = Two()
    recipe = fb.Recipe([fb.Rule(own.match.removesuffix(".*"), weight=own.weight, input=own.input) for own in RULES])
    fb.prepare_qat(
        model, recipe, training=fb.Training(gradient=name), batch=torch.tensor(np.asarray(X)), dtype="float32"
    )
    state = {}
    for layer in ("up", "down"):
        for key, own in tree[layer]["kernel"].arrays.items():
            value = torch.tensor(np.asarray(own))
            if key == "weight":
                state[f"{layer}.parametrizations.weight.original"] = value.T
            elif key.startswith("input_"):
                state[f"{layer}.input_quantizer.range.{key.removeprefix('input_')}"] = value
            else:
                state[f"{layer}.parametrizations.weight.0.range.{key}"] = value[:, None, :, None]
    return trained, tree, model, state


@pytest.mark.parametrize("name", LEARNED)
def test_a_function_has_the_gradients_of_the_module_of_pytorch(name):
    trained, tree, model, state = trained_by_both(name)
    assert set(state) <= set(dict(model.named_parameters()))
    own = {key: value.clone().requires_grad_() for key, value in state.items()}
    upstream = numbers(6, 3, 4, seed=3)
    wide = 1.5 * X  # so that some inputs are clipped
    theirs = functional_call(model, own, (torch.tensor(np.asarray(wide)),))
    (theirs * torch.tensor(upstream)).sum().backward()
    ours, found = jax.value_and_grad(lambda p: (trained(p, wide) * upstream).sum())(tree)
    np.testing.assert_allclose(ours, float((theirs.detach() * torch.tensor(upstream)).sum()), rtol=1e-4)
    for layer in ("up", "down"):
        for key, gradient in found[layer]["kernel"].arrays.items():
            place = {"weight": "parametrizations.weight.original"}.get(key)
            place = place or f"parametrizations.weight.0.range.{key}"
            place = f"input_quantizer.range.{key.removeprefix('input_')}" if key.startswith("input_") else place
            want = own[f"{layer}.{place}"].grad.numpy()
            want = want.T if key == "weight" else want.reshape(gradient.shape)
            assert np.abs(want).max() > 0, key
            # The gradient of a scale is a difference of sums of up to 127 steps each.
            np.testing.assert_allclose(gradient, want, rtol=1e-3, atol=1e-4, err_msg=f"{layer} {key}")


def named(tree):
    """Return the arrays of a tree by their paths."""
    paths = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="."): np.asarray(own) for path, own in paths}


def stacked(p, x):
    x = lax.conv_general_dilated(x, p["kernel"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return lax.scan(lambda h, w: (jax.nn.relu(h @ w), None), x.mean((1, 2)), p["stack"])[0]


STACKED = {"kernel": normal(3, 3, 2, 8), "stack": normal(2, 8, 8, seed=1)}
IMAGES = normal(16, 6, 6, 2, seed=2)
STATIC = [
    fb.Rule("kernel", weight="int4 g2", input="int8 static channel"),
    fb.Rule("stack", weight="int8", input="int8 static"),
]


@pytest.mark.parametrize(
    ("name", "integers"), [("lsq", False), ("lsq", True), ("pact", True), ("straight-through", True)]
)
def test_what_training_has_seen_is_what_is_finished(name, integers):
    trained = fb.jax.prepare_qat(
        stacked, STACKED, STATIC, IMAGES, training=fb.Training(gradient=name), calibration=[IMAGES], integers=integers
    )
    tree = trained.begin(STACKED)
    assert (tree["stack"] is STACKED["stack"]) == (name == "straight-through")
    step = jax.jit(jax.value_and_grad(lambda p: jnp.square(trained(p, 1.5 * IMAGES) - 1.0).mean()))
    losses, still = [], set()
    for _ in range(3):
        loss, change = step(tree)
        losses.append(loss)
        still |= {path for path, own in named(change).items() if not np.abs(own).max()}
        tree = jax.tree.map(lambda own, by: own - 0.01 * by, tree, change)
    assert losses[2] < losses[0]
    # A bound or a zero point has a gradient where inputs are clipped, and rectified ones are not below 0.
    assert still <= {"kernel.input_zero_point", "stack.input_zero_point", "kernel.input_low", "stack.input_low"}
    run, quantized = fb.jax.finish_qat(trained, tree)
    assert quantized["stack"].arrays["input_scale"].shape == (2,)
    assert quantized["kernel"].arrays["input_scale"].shape == (2,)
    assert run.table[1].runs == "int8 x int8 -> int32"
    np.testing.assert_allclose(run(quantized, IMAGES), trained(tree, IMAGES), rtol=1e-5, atol=1e-5)
    # Another step of the weights would be seen.
    _, others = fb.jax.finish_qat(trained, jax.tree.map(lambda own: own * 1.5, tree))
    assert float(jnp.abs(run(others, IMAGES) - trained(tree, IMAGES)).max()) > 0.01


def test_codes_are_multiplied_forwards_and_values_backwards():
    p, x = {"w": normal(16, 8)}, normal(5, 16, seed=1)
    rules = [fb.Rule("w", weight="int8", input="int8 static")]
    both = []
    for integers in (False, True):
        trained = fb.jax.prepare_qat(
            lambda p, x: x @ p["w"], p, rules, x, training=fb.Training(), calibration=[x], integers=integers
        )
        text = str(jax.make_jaxpr(trained)(trained.begin(p), x))
        assert ("preferred_element_type=int32" in text) == integers
        both.append(jax.value_and_grad(lambda p, f=trained: jnp.square(f(p, x)).mean())(trained.begin(p)))
    for ours, theirs in zip(*map(jax.tree.leaves, both), strict=True):
        # The gradient of a scale is a difference of sums of up to 127 steps each.
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-4)


def test_learned_ranges_train_better_than_fixed_ones():
    rules = [fb.Rule(".*", weight="int2 channel")]
    wanted, ends = stacked(STACKED, IMAGES), {}
    for training in (fb.Training(), fb.Training(gradient="straight-through", ranges="fixed")):
        trained = fb.jax.prepare_qat(stacked, STACKED, rules, IMAGES, training=training)

        def step(p, _, f=trained):
            loss, change = jax.value_and_grad(lambda own: jnp.square(f(own, IMAGES) - wanted).mean())(p)
            return jax.tree.map(lambda own, by: own - 0.01 * by, p, change), loss

        _, losses = lax.scan(step, trained.begin(STACKED), None, 60)
        ends[training.gradient.name] = float(losses[-1])
    assert ends["lsq"] < ends["straight-through"]


def test_optimizers_train_weights_and_ranges_at_rates_of_their_own():
    p, x = {"w": normal(16, 8)}, normal(32, 16, seed=1)
    trained = fb.jax.prepare_qat(
        lambda p, x: x @ p["w"], p, [fb.Rule("w", weight="int3 g8")], x, training=fb.Training()
    )
    start = trained.begin(p)
    labels = jax.tree_util.tree_map_with_path(lambda path, _: "weight" if path[-1].key == "weight" else "range", start)
    for rates, moved in (((0.01, 0.001), {"w.weight", "w.scale"}), ((0.01, 0.0), {"w.weight"})):
        optimizer = optax.partition(dict(zip(("weight", "range"), map(optax.adam, rates), strict=True)), labels)

        @jax.jit
        def step(p, state, by=optimizer):
            change = jax.grad(lambda own: jnp.square(trained(own, x) - 1.0).mean())(p)
            updates, state = by.update(change, state, p)
            return optax.apply_updates(p, updates), state

        tree, state = start, optimizer.init(start)
        for _ in range(2):
            tree, state = step(tree, state)
        after, before = named(tree), named(start)
        assert {name for name in before if not np.array_equal(after[name], before[name])} == moved


def test_kept_ranges_stay_whatever_the_weights_become():
    rules = [fb.Rule("stack", weight="int4 channel")]
    training = fb.Training(gradient="straight-through", ranges="fixed")
    trained = fb.jax.prepare_qat(stacked, STACKED, rules, IMAGES, training=training)
    _, first = fb.jax.finish_qat(trained, STACKED)
    _, later = fb.jax.finish_qat(trained, jax.tree.map(lambda own: own * 0.5, STACKED))
    np.testing.assert_array_equal(first["stack"].arrays["scale"], later["stack"].arrays["scale"])
    _, each = fb.jax.quantize(stacked, jax.tree.map(lambda own: own * 0.5, STACKED), rules, IMAGES)
    assert not np.array_equal(each["stack"].arrays["scale"], later["stack"].arrays["scale"])


def test_experts_have_ranges_of_their_own():
    def experts(p, x, sizes):
        return lax.ragged_dot(x, p["w"], sizes)

    p, x, sizes = {"w": normal(2, 8, 4)}, normal(6, 8, seed=1), jnp.asarray([2, 4], jnp.int32)
    x = x.at[2:].multiply(9.0)
    trained = fb.jax.prepare_qat(
        experts, p, [fb.Rule("w", weight="int8", input="int8 static")], x, sizes, training=fb.Training(),
        calibration=[(x, sizes)],
    )  # fmt: skip
    tree = trained.begin(p)
    scales = tree["w"].arrays["input_scale"]
    assert scales.shape == (2,)
    assert scales[1] > 4 * scales[0]
    change = jax.grad(lambda p: trained(p, x, sizes).sum())(tree)
    assert np.abs(change["w"].arrays["input_scale"]).min() > 0
    run, quantized = fb.jax.finish_qat(trained, tree)
    np.testing.assert_allclose(run(quantized, x, sizes), trained(tree, x, sizes), rtol=1e-5, atol=1e-5)


def test_gradients_reach_weights_in_functions_with_derivatives_of_their_own():
    @jax.custom_vjp
    def twice(w, x):
        return x @ w

    twice.defvjp(lambda w, x: (x @ w, (w, x)), lambda kept, g: (2.0 * kept[1].T @ g, g @ kept[0].T))
    p, x = {"w": normal(8, 4)}, normal(5, 8, seed=1)
    trained = fb.jax.prepare_qat(lambda p, x: twice(p["w"], x), p, [fb.Rule("w", weight="int8 channel narrow")], x)
    own = jax.grad(lambda p: trained(p, x).sum())(p)
    np.testing.assert_allclose(own["w"], 2.0 * x.T @ jnp.ones((5, 4)), rtol=1e-5, atol=1e-5)


def test_shapes_of_the_tree_are_known_without_numbers():
    trained = fb.jax.prepare_qat(stacked, STACKED, STATIC, IMAGES, training=fb.Training(), calibration=[IMAGES])
    shapes, tree = jax.eval_shape(trained.begin, STACKED), trained.begin(STACKED)
    assert jax.tree.structure(shapes) == jax.tree.structure(tree)
    assert [own.shape for own in jax.tree.leaves(shapes)] == [own.shape for own in jax.tree.leaves(tree)]
    assert {"kernel.weight", "kernel.input_scale", "stack.scale"} <= named(tree).keys()


def test_what_training_on_functions_does_not_have_is_said():
    with pytest.raises(CalibrationError, match="give calibration="):
        fb.jax.prepare_qat(stacked, STACKED, STATIC, IMAGES, training=fb.Training())
    for training in (
        fb.Training(delay=3),
        fb.Training(freeze_ranges=0),
        fb.Training(gradient="straight-through", ranges="average"),
    ):
        with pytest.raises(NotYetError, match="count no steps"):
            fb.jax.prepare_qat(stacked, STACKED, STATIC, IMAGES, training=training, calibration=[IMAGES])
    trained = fb.jax.prepare_qat(stacked, STACKED, STATIC, IMAGES, training=fb.Training(), calibration=[IMAGES])
    with pytest.raises(PlanError, match=r"kernel comes without the range that lsq learns; train what `begin"):
        trained(STACKED, IMAGES)
    with pytest.raises(NonFiniteError, match="kernel holds NaN"):
        fb.jax.finish_qat(trained, jax.tree.map(lambda own: own * jnp.nan, trained.begin(STACKED)))
