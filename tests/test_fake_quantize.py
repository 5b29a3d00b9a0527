"""`fake_quantize`: the values of quantize + dequantize, with gradients that train."""

import jax
import numpy as np
import pytest
import torch

from fewbit.qtensor import fake_quantize, quantize
from fewbit.schemes.notation import parse_scheme

SCHEMES = ["int4 g16", "int8 channel asym", "int4 g16 float-zero", "int3 tensor asym mse", "e4m3 channel", "nvfp4"]
SCHEMES += ["nf4 g16", "ternary g16"]


def weight() -> np.ndarray:
    values = np.random.default_rng(0).normal(size=(6, 40)).astype(np.float32)
    values[1, 3] = 0.0
    return values


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("seed", [None, 5])
def test_values_are_those_of_the_quantized_tensor(text, seed, xp):
    scheme = parse_scheme(text)
    expected = quantize(weight(), scheme, seed=seed).dequantize()
    found = fake_quantize(xp.from_numpy(weight()), scheme, seed=seed)
    np.testing.assert_array_equal(xp.to_numpy(found), expected, strict=True)
    tensor = torch.from_numpy(weight()).requires_grad_()
    np.testing.assert_array_equal(fake_quantize(tensor, scheme, seed=seed).detach().numpy(), expected, strict=True)


@pytest.mark.parametrize("text", SCHEMES)
def test_gradients_are_one_where_nothing_saturates_also_at_zero(text):
    scheme = parse_scheme(text)
    tensor = torch.from_numpy(weight()).requires_grad_()
    fake_quantize(tensor, scheme).sum().backward()
    gradient = tensor.grad.numpy()
    # scale * (1 / scale) is 1 up to two roundings of 2^-24.
    assert np.isclose(gradient, 1, rtol=2.0**-22).mean() > 0.8 if text != "ternary g16" else (gradient > 0).any()
    assert (np.isclose(gradient, 1, rtol=2.0**-22) | (gradient == 0)).all()
    assert gradient[1, 3] != 0
    same = jax.grad(lambda values: fake_quantize(values, scheme).sum())(jax.numpy.asarray(weight()))
    np.testing.assert_array_equal(np.asarray(same), gradient)


def test_training_through_it_lowers_the_loss_that_rounding_afterwards_leaves():
    random = np.random.default_rng(1)
    inputs = torch.from_numpy(random.normal(size=(256, 40)).astype(np.float32))
    inputs = inputs @ torch.from_numpy(random.normal(size=(40, 40)).astype(np.float32))  # correlated columns
    target = inputs @ torch.from_numpy(weight()).T
    scheme = parse_scheme("int2 channel asym")
    trained = torch.from_numpy(weight()).requires_grad_()
    optimizer = torch.optim.Adam([trained], 0.01)
    losses = []
    for _ in range(150):
        loss = (inputs @ fake_quantize(trained, scheme).T - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert min(losses) < 0.75 * losses[0]


def test_a_seed_rounds_right_on_average_where_nearest_does_not():
    values = np.full((1, 20_001), 0.3, np.float32)
    values[0, 0] = 7.5  # scale 1
    scheme = parse_scheme("int4 channel")
    stochastic = quantize(values, scheme, seed=0).dequantize()[0, 1:]
    assert set(stochastic.tolist()) == {0.0, 1.0}
    assert abs(stochastic.mean() - 0.3) < 5 * 0.0032  # five standard deviations of a mean of 20 000 draws
    assert (quantize(values, scheme).dequantize()[0, 1:] == 0).all()
    again, other = (quantize(values, scheme, seed=seed).codes for seed in (0, 1))
    np.testing.assert_array_equal(again[0, 1:], stochastic)
    assert (other[0, 1:] != stochastic).any()
