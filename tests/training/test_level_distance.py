"""The regularizer pulls weights to their levels, ever more over the steps."""

import pytest
import torch

import fewbit as fb


def test_weights_come_closer_to_their_levels_under_the_regularizer(perceptron):
    model = fb.prepare_qat(perceptron(), "w4a16", training=fb.Training(gradient="straight-through"))
    optimizer = torch.optim.SGD(model.parameters(), 1.0)
    before = float(fb.level_distance(model).detach())
    for _ in range(5):
        optimizer.zero_grad()
        (5.0 * fb.level_distance(model)).backward()
        optimizer.step()
    # Numbers spread evenly over a step are a twelfth of it away.
    assert before == pytest.approx(1 / 12, rel=0.1)
    assert float(fb.level_distance(model).detach()) < before


def test_the_regularizer_grows_with_the_steps(images, perceptron):
    model = fb.prepare_qat(perceptron(), "w4a16")
    model.train()
    whole = float(fb.level_distance(model).detach())
    seen = []
    for _ in range(3):
        seen.append(float(fb.level_distance(model, anneal=2).detach()))
        model(images())
    assert seen == pytest.approx([0.0, whole / 2, whole])
