"""Training begins where the algorithms of a recipe end."""

import pytest
import torch

import fewbit as fb


@pytest.mark.parametrize("scheme", ["int3 g32", "int3 g32 asym", "nf4 channel", "mxfp4"])
def test_training_begins_where_the_algorithms_of_the_recipe_end(scheme, images, perceptron):
    recipe = fb.Recipe([fb.Rule(kind="linear", weight=scheme, algorithm="gptq")])
    calibration = [images(256)]
    solved = fb.quantize(perceptron(), recipe, calibration=calibration)
    model = fb.prepare_qat(perceptron(), recipe, calibration=calibration)
    for place in (1, 3):
        assert torch.equal(model[place].weight, solved.model[place].weight)
    nearest = fb.prepare_qat(perceptron(), recipe)
    assert not torch.equal(nearest[1].weight, solved.model[1].weight)
