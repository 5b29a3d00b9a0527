"""A training that has diverged stops, and says where."""

import pytest
import torch

import fewbit as fb
from fewbit.errors import NonFiniteError


def test_a_weight_that_becomes_nan_stops_the_training_with_its_name(images, perceptron):
    model = fb.prepare_qat(perceptron(), "w4a16")
    model.train()(images())
    with torch.no_grad():
        model[3].parametrizations.weight.original[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"3\.weight has become NaN or infinite.*lower the learning rate"):
        model(images())


def test_numbers_that_overflow_stop_the_training_with_the_name_of_the_layer(images, perceptron):
    model = perceptron()
    model[1].weight.data *= 1000
    fb.prepare_qat(model, "w4a16")
    with pytest.raises(NonFiniteError, match="1 puts out NaN or infinity"):
        model.train()(images() * 5e37)
