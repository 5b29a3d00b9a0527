"""Scales that GPTQ searches are weighted by what rounding each column costs, its pivot."""

import pytest
import torch

from fewbit.algorithms.column_scales import chosen, fixed, importances
from fewbit.algorithms.hessian import Corner, Hessian, factor
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

pytestmark = pytest.mark.usefixtures("one_thread")

#: What the columns of a group cost: a thousandfold more or less.
COSTS = torch.logspace(-1.5, 1.5, 16, dtype=torch.float64)[torch.arange(16) * 7 % 16]


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def left_over(group, scale, zero, scheme):
    """Return the squared error of each column, of all rows, float64 (k,)."""
    value, wide, shift = group.double(), scale.double()[:, None], zero.double()[:, None]
    codes = ((value / wide).round() + shift).clamp(scheme.format.qmin, scheme.format.qmax)
    return (value - (codes - shift) * wide).square().sum(0)


@pytest.mark.parametrize("text", ["int3 g16", "int3 asym g16"])
def test_a_scale_is_chosen_for_the_columns_whose_errors_cost_most(text):
    group, scheme = draw(64, 16), parse_scheme(text)
    weighted, plain = (
        left_over(group, *chosen(group, Corner(torch.eye(16), costs.float()), scheme, search=True), scheme)
        for costs in (COSTS, torch.ones_like(COSTS))
    )
    # Costs lie a thousandfold apart, so either is far from the other's best; 0.8 leaves room to the grid of factors.
    assert (weighted * COSTS).sum() < 0.8 * (plain * COSTS).sum()
    assert plain.sum() < 0.8 * weighted.sum()


def test_what_a_column_costs_is_told_in_the_order_of_the_weight():
    moment = torch.diag(torch.tensor([4.0, 1.0, 9.0]))
    hessian = factor(moment, torch.tensor([2, 0, 1]), 1e-6)
    # Without correlation the pivots are H_jj, but for a damping of 1e-6 times the mean diagonal.
    torch.testing.assert_close(importances(hessian), torch.tensor([4.0, 1.0, 9.0]).double(), rtol=1e-5, atol=0)
    swapped = Hessian(torch.tensor([2, 0, 1]), moment, torch.eye(3), torch.tensor([1.0, 4.0, 16.0]), 0.01)
    assert importances(swapped).tolist() == [4.0, 16.0, 1.0]


def test_scales_that_are_fixed_before_are_weighted_too():
    weight, scheme = draw(64, 16), parse_scheme("int3 g16")
    weighted, plain = (fixed(weight, costs, scheme, search=True) for costs in (COSTS, torch.ones_like(COSTS)))
    errors = [(own.dequantize() - weight).double().square() for own in (weighted, plain)]
    assert (errors[0] * COSTS).sum() < 0.8 * (errors[1] * COSTS).sum()  # as above
    unsearched = fixed(weight, COSTS, scheme, search=False)
    assert torch.equal(unsearched.scale, quantize(weight, scheme).scale)
