"""The factor of the second moment, against NumPy in float64."""

import numpy as np
import pytest
import torch

from fewbit.algorithms.hessian import factor, factor_each
from fewbit.errors import NonFiniteError

WIDTH = 300
#: Float32 products over 300 columns, as a share of the largest result.
SUMS = 2e-5


def moment_of(seed=0, width=WIDTH):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(width, width, generator=generator) * torch.logspace(0, -1, width)
    inputs = torch.randn(1000, width, generator=generator) @ mix
    return inputs.T @ inputs / 1000


def close(found, expected):
    expected = np.asarray(expected)
    np.testing.assert_allclose(found, expected, rtol=0, atol=SUMS * np.abs(expected).max())


def test_root_and_pivots_make_the_damped_moment_in_its_order():
    moment, order = moment_of(), torch.randperm(WIDTH, generator=torch.Generator().manual_seed(1))
    found = factor(moment, order, 0.01)
    expected = moment.double().numpy()
    expected = expected + 0.01 * expected.diagonal().mean() * np.eye(WIDTH)
    close(found.damped, expected)
    assert torch.equal(found.root, found.root.triu())
    assert (found.root.diagonal() == 1.0).all()
    root = found.root.double()
    close(root * found.pivots.double() @ root.T, expected[np.ix_(order, order)])


def test_a_pivot_is_what_an_error_costs_that_the_columns_after_make_up_for():
    found = factor(moment_of(), torch.arange(WIDTH), 0.01)
    inverse = np.linalg.inv(found.damped.double().numpy())
    upper = np.linalg.cholesky(inverse).T  # the U of the paper
    # Condition number of the moment, about 1e3, times a place of float32.
    np.testing.assert_allclose(found.pivots, upper.diagonal() ** -2.0, rtol=1e-3)
    corner = found.corner(slice(100, 164))
    part = upper[100:164, 100:164]
    close(corner.moment, np.linalg.inv(part.T @ part))
    close(corner.weights, corner.pivots / corner.pivots.double().mean())


@pytest.mark.parametrize("rows", [5, 90])
def test_columns_of_a_group_make_up_together_for_the_errors_before(rows):
    found = factor(moment_of(), torch.arange(WIDTH), 0.01)
    errors = torch.randn(rows, 100, generator=torch.Generator().manual_seed(2))
    made_up = torch.zeros(rows, 64)
    found.corner(slice(100, 164)).make_up(made_up, errors @ found.root[:100, 100:164])
    # What the paper's updates come to: the minimum of (w - q) H (w - q)^T over all columns after the 100.
    damped = found.damped.double().numpy()
    best = -np.linalg.solve(damped[100:, 100:], damped[100:, :100] @ errors.double().numpy().T).T
    close(-made_up, best[:, :64])


def test_the_gradient_comes_from_what_columns_left():
    order = torch.randperm(WIDTH, generator=torch.Generator().manual_seed(3))
    found = factor(moment_of(), order, 0.01)
    errors = torch.randn(40, WIDTH, generator=torch.Generator().manual_seed(4))
    gradient = found.gradient(errors[:, order] @ found.root)
    close(gradient, errors.double() @ found.damped.double())


def test_moments_side_by_side_are_factored_as_alone():
    moments = torch.stack([moment_of(seed, 40) for seed in (5, 6)])
    order = torch.stack([torch.randperm(40, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8)])
    found = factor_each(moments, order, 0.01)
    for group in range(2):
        alone = factor(moments[group], order[group], 0.01)
        for name in ("damped", "root", "pivots"):
            close(getattr(found, name)[group], getattr(alone, name))


def test_damping_grows_until_the_moment_has_a_factor_and_nothing_helps_nan():
    dependent = torch.ones(8, 8) - 0.5 * torch.eye(8)  # one eigenvalue of 7.5, seven of -0.5
    found = factor(dependent, torch.arange(8), 0.01)
    assert 0.01 < found.damping <= 100
    assert np.linalg.eigvalsh(found.damped.double()).min() > 0
    with pytest.raises(NonFiniteError, match="cannot be factored"):
        factor(torch.full((8, 8), torch.nan), torch.arange(8), 0.01)
