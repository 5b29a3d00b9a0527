"""A weight in front of a BatchNorm is trained as it will be folded."""

import copy

import torch
from torch import nn

import fewbit as fb


def test_norms_keep_their_averages_once_they_are_frozen(images, convolutional):
    model = fb.prepare_qat(convolutional(), "w8a8-static", training=fb.Training(freeze_norms=2), batch=images())
    seen = []
    for factor in (1.0, 2.0, 3.0, 4.0):
        model.train()
        model(factor * images())
        seen.append(model[1].running_mean.clone())
    assert not torch.equal(seen[0], seen[1])
    assert torch.equal(seen[1], seen[2])
    assert torch.equal(seen[2], seen[3])


def test_weights_in_front_of_a_norm_are_rounded_as_they_will_be_folded(images, convolutional, train):
    model = convolutional()
    train(model, 3)
    fb.prepare_qat(model, "w4a8", batch=images())
    norm = model[1]
    gain = norm.weight / (norm.running_var + norm.eps).sqrt()
    folded = (model[0].weight * gain[:, None, None, None]).detach()
    result = fb.finish_qat(model)
    levels = result.model[0].qtensor.dequantize()
    # Dividing by the gain and multiplying by it again rounds twice.
    assert torch.allclose(levels, folded.reshape(levels.shape), rtol=1e-6)
    assert isinstance(result.model[1], nn.Identity)


def test_a_solved_start_is_that_of_the_folded_layer(images, convolutional, train):
    recipe = fb.Recipe([fb.Rule(kind="conv", weight="int4 channel"), fb.keep(kind="linear")], transforms=["batchnorm"])
    trained = train(convolutional(), 3)
    solved = fb.quantize(copy.deepcopy(trained), recipe, calibration=[images()])
    model = fb.prepare_qat(trained, recipe, batch=images(), calibration=[images()])
    result = fb.finish_qat(model)
    for place in (0, 3):
        assert torch.equal(result.model[place].qtensor.codes, solved.model[place].qtensor.codes)
