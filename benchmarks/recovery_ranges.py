"""A depthwise network with channels of very different ranges, one scale a tensor: equalization, bias correction."""

from __future__ import annotations

import argparse
import copy
from statistics import fmean
from typing import Any

import torch
from torch import nn

import fewbit as fb
from recovery_images import BY_NORMS, Cnn, Data, fashion_data, float_model
from small_images import accuracy

#: Powers of two between which the channels of a layer are spread.
SPREAD = 5
WAYS: dict[str, tuple[list[Any], list[Any]]] = {
    "nearest": (["batchnorm"], []),
    "bias correction": (["batchnorm"], ["bias"]),
    "equalization": (["batchnorm", "equalization"], []),
    "equalization, bias correction": (["batchnorm", "equalization"], ["bias"]),
    "equalization, bias correction by BatchNorms": (["batchnorm", "equalization"], [BY_NORMS]),
    "equalization, absorption, bias correction": (["batchnorm", "equalization", "high-bias-absorption"], ["bias"]),
}


def ranges_part(given: argparse.Namespace) -> None:
    """Agreement with float on the test images: int8 weights and static int8 inputs, a scale a tensor."""
    data = fashion_data(given)
    print(f"\nCNN, ranges of channels planted over 2^{2 * SPREAD}; int8 tensor throughout; {given.seeds} seeds\n")
    print("| method | same predictions as float, % | accuracy, % |\n| --- | ---: | ---: |")
    models = [planted(float_model("CNN", seed, data), seed, data) for seed in range(given.seeds)]
    print(f"| float | 100.00 | {fmean(accuracy(model, *data.test) for model in models):.2f} |")
    for name, (transforms, corrections) in WAYS.items():
        rules = [
            fb.Rule(kind=kind, weight="int8 tensor", input="int8 tensor asym static") for kind in ("conv", "linear")
        ]
        recipe = fb.Recipe(rules, transforms=transforms, corrections=corrections)
        rounded = [fb.quantize(copy.deepcopy(model), recipe, calibration=data.calibration).model for model in models]
        same = fmean(agreement(*pair, data) for pair in zip(rounded, models, strict=True))
        right = fmean(accuracy(model, *data.test) for model in rounded)
        print(f"| {name} | {same:.2f} | {right:.2f} |", flush=True)


@torch.no_grad()
def planted(model: Cnn, seed: int, data: Data) -> Cnn:
    """Return the same function with channels multiplied behind each norm, and divided in the next convolution."""
    images = data.test[0][:100]
    expected, generator = model(images), torch.Generator().manual_seed(seed)
    layers = list(model)
    for place, norm in enumerate(layers):
        following = next((own for own in layers[place:] if isinstance(own, nn.Conv2d)), None)
        if not isinstance(norm, nn.BatchNorm2d) or following is None:
            continue
        factors = 2.0 ** (SPREAD * (2 * torch.rand(norm.num_features, generator=generator) - 1))
        norm.weight *= factors
        norm.bias *= factors
        depthwise = following.groups == following.in_channels
        following.weight /= factors[:, None, None, None] if depthwise else factors[None, :, None, None]
    torch.testing.assert_close(model(images), expected, rtol=1e-3, atol=1e-3)
    return model


@torch.no_grad()
def agreement(model: nn.Module, reference: nn.Module, data: Data) -> float:
    """Return on how many test images (percent) both say the same."""
    images = data.test[0]
    same = sum(int((model(part).argmax(1) == reference(part).argmax(1)).sum()) for part in images.split(500))
    return 100 * same / len(images)
