"""`NumberFormat.round`: the value of decode(encode(x)), the gradient of straight-through, under every compiler."""

import jax
import numpy as np
import pytest
import torch

from fewbit.formats.codebook import BINARY, NF4, TERNARY, Codebook
from fewbit.formats.integer import Int
from fewbit.formats.minifloat import E2M1, E4M3, E5M2, Float
from fewbit.formats.power_of_two import PowerOfTwo

FORMATS = [Int(4), Int(8, narrow=True), Int(3, signed=False), E4M3, E2M1, E5M2, NF4, BINARY, TERNARY]
FORMATS += [Codebook((-0.7, 0.1, 0.2, 3.0), "four")]


def spread(form) -> np.ndarray:
    """Return values on, between and beyond the levels of `form`."""
    random = np.random.default_rng(0)
    levels = np.array(form.levels, np.float32)
    inside = random.uniform(levels[0], levels[-1], 500).astype(np.float32)
    middles = (levels[1:] + levels[:-1]) / 2
    return np.concatenate([levels, middles, inside, 3 * levels[[0, -1]], random.normal(size=100).astype(np.float32)])


def expected_gradient(form, values):
    """1 up to half a step beyond the outermost levels, 0 further out."""
    levels = form.levels
    low, high = levels[0] - (levels[1] - levels[0]) / 2, levels[-1] + (levels[-1] - levels[-2]) / 2
    return ((values >= np.float32(low)) & (values <= np.float32(high))).astype(np.float32)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_round_is_decode_of_encode(form, xp):
    values = xp.from_numpy(spread(form))
    expected = xp.to_numpy(form.decode(form.encode(values)))
    np.testing.assert_array_equal(xp.to_numpy(form.round(values)), expected, strict=True)


@pytest.mark.parametrize("form", FORMATS, ids=lambda form: form.name)
def test_gradients_pass_straight_through_autograd_and_jax_grad(form):
    values = spread(form)
    expected = expected_gradient(form, values)
    assert 0 < expected.sum() < len(values)  # both kinds are there
    tensor = torch.from_numpy(values).requires_grad_()
    rounded = form.round(tensor)
    np.testing.assert_array_equal(rounded.detach().numpy(), form.round(values))
    rounded.sum().backward()
    np.testing.assert_array_equal(tensor.grad.numpy(), expected)

    def total(array):
        return form.round(array).sum()

    for gradient in (jax.grad(total), jax.jit(jax.grad(total))):
        np.testing.assert_array_equal(np.asarray(gradient(jax.numpy.asarray(values))), expected)
    np.testing.assert_array_equal(np.asarray(jax.jit(form.round)(values)), form.round(values))


@pytest.mark.parametrize("form", [Int(4), E4M3, NF4], ids=lambda form: form.name)
def test_round_trains_inside_torch_compile_in_one_graph(form):
    values = spread(form)
    tensor = torch.from_numpy(values).requires_grad_()
    torch._dynamo.reset()
    compiled = torch.compile(form.round, backend="aot_eager", fullgraph=True, dynamic=False)
    rounded = compiled(tensor)
    np.testing.assert_array_equal(rounded.detach().numpy(), form.round(values))
    rounded.sum().backward()
    np.testing.assert_array_equal(tensor.grad.numpy(), expected_gradient(form, values))


@pytest.mark.parametrize("form", [*FORMATS, PowerOfTwo()], ids=lambda form: form.name)
def test_stochastic_rounding_is_right_on_average_and_keeps_levels(form):
    levels = np.array([level for level in form.levels if abs(level) < 1e30], np.float32)
    middle = len(levels) // 2
    low, high = levels[middle - 1], levels[middle]
    share = np.float32(0.3)
    value = low + share * (high - low)
    # One step of noise for each of 1000 equal parts of [0, 1): the share of ups is exact to a part or two.
    noise = ((np.arange(1000) + 0.5) / 1000).astype(np.float32)
    rounded = form.round(np.full(1000, value, np.float32), noise)
    assert set(rounded.tolist()) == {float(low), float(high)}
    assert abs((rounded == high).mean() - share) <= 0.002
    for constant in (0.0, 1 - 2.0**-24):
        np.testing.assert_array_equal(form.round(levels, np.full(len(levels), constant, np.float32)), levels)
    if form.levels[-1] < 1e30:
        assert form.round(2 * levels[-1:], np.zeros(1, np.float32)) == levels[-1]


def test_stochastic_rounding_equals_for_equal_noise_in_every_framework(xp):
    for form in (*FORMATS, Float(8, 7, specials="ieee")):
        values = spread(form) if form.bits <= 8 else np.linspace(-3, 3, 1001, dtype=np.float32)
        noise = np.random.default_rng(1).random(len(values), np.float32)
        found = form.round(xp.from_numpy(values), xp.from_numpy(noise))
        np.testing.assert_array_equal(xp.to_numpy(found), form.round(values, noise), strict=True)
