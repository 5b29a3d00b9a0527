"""When what begins and ends in a training run, by steps that the model counts itself."""

import pytest
import torch

import fewbit as fb
from fewbit.errors import CalibrationError, RecipeError


def test_nothing_is_rounded_before_its_time(images, perceptron, outputs):
    model = perceptron()
    expected = outputs(model)
    fb.prepare_qat(model, "w4a8", training=fb.Training(delay=2))
    model.train()
    with torch.no_grad():
        assert [torch.equal(model(images()), expected) for _ in range(4)] == [True, True, False, False]


def test_ranges_stay_once_they_are_frozen(images, perceptron):
    training = fb.Training(gradient="straight-through", freeze_ranges=2)
    model = fb.prepare_qat(perceptron(), "w8a8-static", training=training)
    own = model[1].input_quantizer.range
    model.train()
    seen = []
    for factor in (1.0, 2.0, 3.0, 4.0):
        model(factor * images())
        seen.append(float(own.high))
    assert seen[0] < seen[1] == seen[2] == seen[3]


def test_learned_ranges_get_no_gradient_once_they_are_frozen(images, perceptron):
    model = fb.prepare_qat(perceptron(), "w8a8-static", training=fb.Training(freeze_ranges=1))
    model.train()
    own = model[1].input_quantizer.range
    for moves in (True, False):
        model.zero_grad()
        model(images()).sum().backward()
        assert bool(own.scale.grad.abs().sum() > 0) is moves


def test_ranges_begin_with_the_first_batch_of_the_training(images, perceptron, outputs):
    model = fb.prepare_qat(perceptron(), "w8a8-static")
    with pytest.raises(CalibrationError, match="1: no input has reached it yet"):
        outputs(model.eval())
    with pytest.raises(CalibrationError, match="1: no input has reached it yet"):
        fb.finish_qat(model)
    model.train()(images())
    assert torch.isfinite(outputs(model.eval())).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ranges": "often"}, "ranges 'often' are none of"),
        ({"ranges": "fixed"}, "lsq learns ranges"),
        ({"momentum": 0.0}, "momentum 0.0 is not in"),
        ({"delay": -1}, "delay -1 is no number of steps"),
        ({"freeze_norms": True}, "freeze_norms True is no number of steps"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, message):
    with pytest.raises(RecipeError, match=message):
        fb.Training(**options)
