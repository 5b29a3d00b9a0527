"""Straight-through in torch: what it computes and what it keeps."""

from __future__ import annotations

import math

import pytest
import torch

from fewbit.numerics.rounding import flushed, passed, straight_through


def kept(function, *values):
    """Return how many bytes are kept for the backward pass."""
    sizes = []
    with torch.autograd.graph.saved_tensors_hooks(lambda own: sizes.append(own.nbytes) or own, lambda own: own):
        function(*values)
    return sum(sizes)


@pytest.mark.parametrize("bounds", [(-1.0, 1.0), (torch.tensor(-1.0), torch.tensor([1.0] * 6))])
def test_gradients_pass_between_the_bounds_and_at_them(bounds):
    values = torch.tensor([-1.5, -1.0, 0.25, 1.0, 1.5, math.nan], requires_grad=True)
    rounded = values.detach().round()
    found = straight_through(values, rounded, *bounds)
    torch.testing.assert_close(found, rounded, rtol=0, atol=0, equal_nan=True)
    found.backward(torch.arange(1.0, 7.0))
    assert values.grad.tolist() == [0.0, 2.0, 3.0, 4.0, 0.0, 0.0]


def test_a_byte_a_number_is_kept_and_nothing_where_all_gradients_pass():
    values = torch.randn(1000, requires_grad=True)
    rounded = values.detach().round()
    assert kept(straight_through, values, rounded, -1.0, 1.0) == 1000
    assert kept(passed, values, rounded) == 0


def test_infinite_numbers_keep_their_level():
    values = torch.tensor([math.inf, -math.inf], requires_grad=True)
    assert passed(values, torch.tensor([7.0, -8.0])).tolist() == [7.0, -8.0]


def test_gradients_have_the_type_of_what_was_rounded():
    values = torch.tensor([1.0, 2.0**-24], dtype=torch.bfloat16, requires_grad=True)
    flushed(values).sum().backward()
    assert values.grad.dtype == torch.bfloat16
    assert values.grad.tolist() == [1.0, 1.0]


def test_a_batch_of_gradients_by_vmap_is_that_of_each():
    values = torch.tensor([[-2.0, 0.5], [0.25, 3.0]])
    gradient = torch.func.grad(lambda own: (straight_through(own, own.round().detach(), -1.0, 1.0) * 3.0).sum())
    assert torch.equal(torch.func.vmap(gradient)(values), torch.stack([gradient(own) for own in values]))
    assert gradient(values[0]).tolist() == [0.0, 3.0]
