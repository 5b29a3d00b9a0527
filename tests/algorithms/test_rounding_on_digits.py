"""Learned roundings give back accuracy: small convolutional networks trained on the digits of scikit-learn."""

import copy

import pytest
import torch
from torch import nn

import fewbit as fb

pytestmark = pytest.mark.usefixtures("one_thread")
ALGORITHMS = {
    "nearest": "nearest",
    "adaround": "adaround",
    "symmetric": {"name": "adaround", "asymmetric": False},
    "brecq": {"name": "brecq", "steps": 100, "samples": 1},
}


def digits():
    from sklearn.datasets import load_digits

    loaded = load_digits()
    order = torch.randperm(len(loaded.images), generator=torch.Generator().manual_seed(0))
    images = torch.tensor(loaded.images / 16.0, dtype=torch.float32)[order, None]
    return images, torch.tensor(loaded.target)[order]


def unit(inputs, outputs, kernel=3, groups=1):
    return [
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False), nn.BatchNorm2d(outputs),
        nn.ReLU(),
    ]  # fmt: skip


def trained(seed, images, labels):
    """Return a network with depthwise layers after 8 passes over its training images."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        *unit(1, 16), *unit(16, 16, 3, 16), *unit(16, 24, 1), nn.MaxPool2d(2), *unit(24, 24, 3, 24), *unit(24, 32, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(8):
        for batch in torch.randperm(len(images), generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images[batch]), labels[batch]).backward()
            optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def measured():
    """The accuracies on 597 images of each form, means over three networks."""
    images, labels = digits()
    found = dict.fromkeys(("float", *ALGORITHMS), 0.0)
    calibration = list(images[:256].split(32))

    def accuracy(model):
        with torch.no_grad():
            return float((model(images[1200:]).argmax(1) == labels[1200:]).float().mean()) / 3

    for seed in range(3):
        model = trained(seed, images[:1200], labels[:1200])
        found["float"] += accuracy(model)
        for name, algorithm in ALGORITHMS.items():
            recipe = fb.Recipe([fb.Rule(".*", weight="int4 tensor", algorithm=algorithm)], transforms=["batchnorm"])
            found[name] += accuracy(fb.quantize(copy.deepcopy(model), recipe, calibration=calibration).model)
    return found


@pytest.mark.parametrize("algorithm", ["adaround", "symmetric", "brecq"])
def test_at_least_half_of_the_accuracy_that_nearest_rounding_to_4_bits_loses_comes_back(measured, algorithm):
    lost, left = (measured["float"] - measured[name] for name in ("nearest", algorithm))
    assert lost > 0.02
    assert left < 0.5 * lost


def test_what_layers_make_up_for_of_those_before_comes_back_besides(measured):
    assert measured["adaround"] > measured["symmetric"]


def test_behind_inputs_of_4_bits_gptq_for_the_float_output_is_nearer_to_it():
    images, labels = digits()
    model, calibration = trained(0, images[:1200], labels[:1200]), list(images[:256].split(32))
    found = {}
    for on in (None, False):
        rule = fb.Rule(
            ".*", weight="int4 channel", input="int4 tensor asym static mse", algorithm=fb.Gptq(asymmetric=on)
        )
        made = fb.quantize(copy.deepcopy(model), fb.Recipe([rule], transforms=["batchnorm"]), calibration=calibration)
        with torch.no_grad():
            found[on] = float((made.model(images[1200:]) - model(images[1200:])).square().mean())
    assert found[None] < 0.6 * found[False]  # half of it: the clipping of inputs shifts means, which the others keep
