"""A small CNN and a small ViT, trained here on Fashion-MNIST from a seed: what 8-bit inputs cost them in accuracy."""

from __future__ import annotations

import argparse
import copy
import gzip
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

import fewbit as fb

METHODS = [
    "int8 token asym", "int8 token", "int8 tensor asym", "int8 tensor asym percentile", "int8 tensor asym mse",
    "int8 tensor asym entropy", "int8 tensor asym static", "int8 tensor absmax static",
    "int8 tensor asym static average", "int8 tensor asym static percentile", "int8 tensor asym static mse",
    "int8 tensor asym static entropy", "int8 tensor entropy static",
]  # fmt: skip


class Cnn(nn.Sequential):
    """Convolutions 3 x 3 with BatchNorm; a unit is its channels before and after, its stride and its groups."""

    def __init__(self, *units: tuple[int, int, int, int]) -> None:
        parts: list[nn.Module] = []
        for before, after, stride, groups in units or ((1, 24, 1, 1), (24, 48, 2, 1), (48, 48, 1, 48), (48, 96, 2, 1)):
            convolution = nn.Conv2d(before, after, 3, stride, padding=1, groups=groups, bias=False)
            parts += [convolution, nn.BatchNorm2d(after), nn.ReLU()]
        super().__init__(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(after, 10))


class Block(nn.Module):
    """Attention and a perceptron, each behind a LayerNorm."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before_attention, self.before_mlp = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))

    def forward(self, x: Tensor) -> Tensor:
        samples, tokens, width = x.shape
        parts = self.qkv(self.before_attention(x)).reshape(samples, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(*parts).transpose(1, 2).reshape(samples, tokens, width)
        x = x + self.out(attended)
        return x + self.mlp(self.before_mlp(x))


class Vit(nn.Module):
    """Square patches, a mean over the tokens."""

    def __init__(self, width: int = 64, depth: int = 4, patch: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, patch, patch)
        self.positions = nn.Parameter(0.02 * torch.randn((28 // patch) ** 2, width))
        self.blocks = nn.Sequential(*(Block(width, 4) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.positions
        return self.head(self.norm(self.blocks(tokens)).mean(1))


def images(folder: Path, part: str) -> tuple[Tensor, Tensor]:
    """Return images (count, 1, 28, 28) from -1 to 1 and labels."""
    pixels = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())[16:]
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())[8:]
    x = torch.from_numpy(np.frombuffer(pixels, np.uint8).reshape(-1, 1, 28, 28).astype(np.float32))
    return x / 127.5 - 1, torch.from_numpy(np.frombuffer(labels, np.uint8).astype(np.int64))


@torch.enable_grad()
def trained(model: Any, x: Tensor, labels: Tensor, epochs: int, rate: float) -> Any:
    """Train with AdamW under one cycle of the learning rate."""
    steps = epochs * (len(x) // 128)
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, steps)
    model.train()
    for _ in range(epochs):
        for own in torch.randperm(len(x)).split(128)[: len(x) // 128]:
            flipped = x[own].flip(3) if torch.rand(()) < 0.5 else x[own]
            optimizer.zero_grad()
            functional.cross_entropy(model(flipped), labels[own]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


def accuracy(model: Any, x: Tensor, labels: Tensor) -> float:
    """Return the percentage of right answers."""
    right = sum(
        int((model(part).argmax(1) == own).sum()) for part, own in zip(x.split(500), labels.split(500), strict=True)
    )
    return 100 * right / len(x)


def fashion_part(given: argparse.Namespace) -> None:
    """Fashion-MNIST: accuracy of a CNN and a ViT trained here, float32 and with 8-bit weights and inputs."""
    folder = given.fashion
    if not folder.is_dir():
        raise SystemExit(f"{folder} is no folder; install Debian's dataset-fashion-mnist or give --fashion FOLDER")
    x, labels = images(folder, "train")
    test = images(folder, "t10k")
    calibration = list(x[:256].split(64))
    print("\nweights int8 channel; ranges from 256 training images\n")
    print("| model | inputs | accuracy, % | change, points |\n| --- | --- | ---: | ---: |")
    for build, epochs, rate in ((Cnn, 3, 1e-2), (Vit, 6, 3e-3)):
        torch.manual_seed(0)
        model = trained(build(), x, labels, epochs, rate)
        before = accuracy(model, *test)
        print(f"| {build.__name__} | float32 | {before:.2f} | |", flush=True)
        for method in METHODS:
            rules = [fb.Rule(kind=kind, weight="int8 channel", input=method) for kind in ("conv", "linear")]
            recipe = fb.Recipe(rules, transforms=["batchnorm"])
            after = accuracy(fb.quantize(copy.deepcopy(model), recipe, calibration=calibration).model, *test)
            print(f"| {build.__name__} | {method} | {after:.2f} | {after - before:+.2f} |", flush=True)
