"""A training run that stops goes on in the same numbers, and a copy of a model goes its own way."""

import copy

import torch
from torch import nn
from torch.nn.utils import parametrize

import fewbit as fb
from fewbit.training.schedule import STEP


def test_a_run_that_goes_on_from_a_state_dict_ends_in_the_same_numbers(images, labels, convolutional):
    def fresh():
        return fb.prepare_qat(convolutional(), "w8a8-static", training=fb.Training(delay=2), batch=images())

    whole, first, second = fresh(), fresh(), fresh()

    def go(model, optimizer, steps):
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images()), labels()).backward()
            optimizer.step()

    optimizers = [torch.optim.Adam(model.parameters(), 1e-2) for model in (whole, first, second)]
    go(whole, optimizers[0], 6)
    go(first, optimizers[1], 3)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    optimizers[2].load_state_dict(copy.deepcopy(optimizers[1].state_dict()))
    go(second, optimizers[2], 3)
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), second.parameters(), strict=True))
    assert int(getattr(second, STEP)) == 6


def test_a_copy_is_a_model_of_its_own(images, convolutional, train, outputs):
    model = fb.prepare_qat(convolutional(), "w8a8-static", batch=images())
    other = copy.deepcopy(model)
    seen = outputs(model.eval())
    train(other, 3)
    assert torch.equal(outputs(model), seen)
    result = fb.finish_qat(other)
    assert result.model is other
    assert parametrize.is_parametrized(model[0])
    assert torch.allclose(outputs(fb.finish_qat(model).model), seen, atol=1e-6)  # folding, as above
