"""The squared gradients at the output of a block are those that autograd finds; nothing is left behind."""

import copy

import pytest
import torch
from torch import nn

from fewbit.frontends.torch.loss_gradient import LossGradient
from fewbit.frontends.torch.output_curvature import output_curvature

BATCHES = list(torch.randn(3, 4, 6, generator=torch.Generator().manual_seed(0)))


class Scaled(nn.Module):
    """Writes into what it is given, as an activation in place does."""

    def __init__(self):
        super().__init__()
        self.factors = nn.Parameter(torch.tensor([1.0, -2.0, 3.0, 0.0, 0.5]))

    def forward(self, rows):
        return rows.mul_(self.factors)


class Paired(nn.Module):
    """Puts out its rows beside something else, as decoder layers do."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(6, 5)

    def forward(self, rows):
        return self.layer(rows), None


class First(nn.Module):
    def forward(self, pair):
        return pair[0]


def network(block):
    torch.manual_seed(0)
    return nn.Sequential(block, First() if isinstance(block, Paired) else nn.Identity(), Scaled()).eval()


def curvature(model, block, heads=None):
    return output_curvature(LossGradient(model, (), heads or {}), block, BATCHES)


@pytest.mark.parametrize("block", [nn.Linear(6, 5), Paired()], ids=["tensor", "tuple"])
def test_a_projection_has_the_squares_of_what_lies_behind(block):
    model = network(block)
    before = copy.deepcopy(model.state_dict())
    found = curvature(model, model[0])
    for number, own in enumerate(found):
        drawn = torch.randn(4, 5, generator=torch.Generator().manual_seed(number))
        assert torch.equal(own, (drawn * model[2].factors).square())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())
    assert not any(part._forward_hooks for part in model.modules())
    assert all(torch.equal(own, before[name]) for name, own in model.state_dict().items())


def test_numbers_that_the_model_puts_out_count_alike_unless_they_are_scores():
    model = network(nn.Linear(6, 5))
    assert all(torch.equal(own, torch.ones(4, 5)) for own in curvature(model, model[2]))
    for own, batch in zip(curvature(model, model[2], heads={"2": 5}), BATCHES, strict=True):
        shares = model(batch).softmax(-1).detach()
        # The gradient is the share, less 1 for the label that was drawn.
        assert torch.allclose((own - shares.square()).abs().amin(1), torch.zeros(4), atol=1e-6)
        drawn = torch.isclose(own, (shares - 1).square(), rtol=1e-4) & ~torch.isclose(own, shares.square(), rtol=1e-4)
        assert (drawn.sum(1) == 1).all()


@pytest.mark.parametrize("blind", ["no_grad", "twice", "unreached"])
def test_where_no_gradient_comes_back_nothing_is_known(blind):
    class Blind(nn.Module):
        def __init__(self):
            super().__init__()
            self.block, self.last = nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, rows):
            hidden = self.block(rows)
            if blind == "twice":
                return self.last(self.block(hidden))
            with torch.set_grad_enabled(blind != "no_grad"):
                return self.last(hidden if blind == "no_grad" else hidden.detach())

    model = Blind().eval()
    assert curvature(model, model.block) is None
