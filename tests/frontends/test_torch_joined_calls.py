"""Calls stand side by side where their first axes are those of samples, and all else is shared."""

import torch

from fewbit.frontends.torch.calls import Call
from fewbit.frontends.torch.joined_calls import joined


def call(samples, *, length=5, mask=None, **kwargs):
    states = torch.arange(samples * length * 2.0).reshape(samples, length, 2)
    angles = torch.ones(1, length, 2), torch.zeros(1, length, 2)
    named = {"mask": mask, "angles": angles, "places": torch.arange(length), "scale": 2.0, **kwargs}
    return Call((states,), named)


def test_samples_are_joined_and_what_all_share_stays():
    both, samples = joined([call(1), call(1)])
    assert samples == [1, 1]
    assert torch.equal(both.args[0], torch.cat([call(1).args[0]] * 2))
    assert both.kwargs["angles"][0].shape == (2, 5, 2)
    assert torch.equal(both.kwargs["places"], torch.arange(5))
    assert (both.kwargs["mask"], both.kwargs["scale"]) == (None, 2.0)


def test_calls_of_several_samples_share_what_has_an_axis_of_one():
    both, samples = joined([call(2), call(3)])
    assert samples == [2, 3]
    assert both.args[0].shape == (5, 5, 2)
    assert both.kwargs["angles"][0].shape == (1, 5, 2)


def test_masks_of_samples_are_joined():
    masks = [torch.tensor([[True, False]]), torch.tensor([[False, False]])]
    both, _ = joined([call(1, mask=mask) for mask in masks])
    assert torch.equal(both.kwargs["mask"], torch.cat(masks))


def test_what_differs_and_counts_no_samples_keeps_calls_apart():
    assert joined([call(1), call(1, length=6)]) is None
    assert joined([call(1), call(1, scale=3.0)]) is None
    assert joined([call(1), call(1, mask=torch.ones(1, 2))]) is None
    assert joined([call(1), call(1, places=torch.arange(5) + 1)]) is None
    assert joined([call(1), call(1, more=None)]) is None
    assert joined([call(1), Call((torch.ones(1, 5, 2, dtype=torch.float64),), call(1).kwargs)]) is None
    assert joined([Call((torch.tensor(1.0),), {}), Call((torch.tensor(1.0),), {})]) is None
    assert joined([Call((), {"scale": 1.0}), Call((), {"scale": 1.0})]) is None
