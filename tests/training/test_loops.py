"""The loops that people have: autocast, compiled steps, and the trainers of other packages."""

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.training.gradients import GRADIENTS


def test_autocast_trains_and_what_comes_out_is_what_was_rounded(images, labels, perceptron):
    model = fb.prepare_qat(perceptron(), "w8a8-static")
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    model.train()
    for _ in range(2):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = nn.functional.cross_entropy(model(images()), labels())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    weight = model[1].weight.detach().clone()
    assert weight.dtype == torch.float32
    assert torch.equal(fb.finish_qat(model).model[1].weight, weight)


@pytest.mark.parametrize("gradient", GRADIENTS)
def test_a_compiled_step_computes_what_an_eager_one_does(gradient, images, perceptron, train, outputs):
    found = []
    for compiled in (False, True):
        model = fb.prepare_qat(perceptron(), "w8a8-static", training=fb.Training(gradient=gradient), batch=images())
        own = torch.compile(model, backend="aot_eager") if compiled else model
        train(own, 3)
        found.append(outputs(model))
    # The compiler may sum gradients in another order.
    assert torch.allclose(*found, atol=1e-5)
