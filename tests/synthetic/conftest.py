"""Waves of ten classes, and a convolutional network and a transformer that learn to tell them apart."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional

SHAPE = (2, 12, 12)


def patterns(count, seed):
    """Return images (count, *SHAPE) of mean about 0 and deviation about 1, and their classes."""
    draw = torch.Generator().manual_seed(seed)
    labels = torch.randint(10, (count,), generator=draw)
    # Waves of five directions, and of two phases between the channels, begin anywhere.
    angle, shift = (labels % 5) * math.pi / 5, (labels // 5) * math.pi / 2
    start = 2 * math.pi * torch.rand(count, 1, 1, generator=draw)
    down, across = torch.meshgrid(torch.arange(12.0), torch.arange(12.0), indexing="ij")
    wave = start + 0.9 * (angle.cos()[:, None, None] * down + angle.sin()[:, None, None] * across)
    images = torch.stack([wave.sin(), (wave + shift[:, None, None]).sin()], 1)
    return 1.3 * images + 0.3 * torch.randn(images.shape, generator=draw), labels


class Convolutional(nn.Module):
    """Two convolutions with BatchNorm, one of them depthwise, a sum, and a head."""

    def __init__(self):
        super().__init__()
        self.first, self.first_norm = nn.Conv2d(2, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        self.depthwise, self.norm = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16)
        self.second, self.second_norm = nn.Conv2d(16, 32, 3, stride=2), nn.BatchNorm2d(32)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        x = functional.relu(self.first_norm(self.first(x)))
        x = x + functional.relu6(self.norm(self.depthwise(x)))
        x = functional.max_pool2d(functional.relu(self.second_norm(self.second(x)), inplace=True), 2)
        return self.head(functional.adaptive_avg_pool2d(x, 1).flatten(1))


class Transformer(nn.Module):
    """Patches, a token of the class, two layers, a head; no BatchNorm."""

    def __init__(self):
        super().__init__()
        self.patches = nn.Conv2d(2, 16, 3, 3)
        self.token = nn.Parameter(0.1 * torch.randn(1, 1, 16))
        self.places = nn.Parameter(0.1 * torch.randn(1, 17, 16))
        layer = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True, norm_first=True)
        self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).mT
        tokens = torch.cat([self.token.expand(len(x), -1, -1), tokens], 1) + self.places
        return self.head(self.layers(tokens)[:, 0])


def trained(model, steps):
    optimizer = torch.optim.Adam(model.parameters(), 5e-3)
    model.train()
    for step in range(steps):
        images, labels = patterns(64, seed=step + 100)
        optimizer.zero_grad()
        functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="session")
def trained_network():
    torch.manual_seed(0)
    return trained(Convolutional(), 60)


@pytest.fixture(scope="session")
def trained_transformer():
    torch.manual_seed(0)
    return trained(Transformer(), 60)


@pytest.fixture
def network(trained_network):
    return copy.deepcopy(trained_network)


@pytest.fixture
def transformer(trained_transformer):
    return copy.deepcopy(trained_transformer)


@pytest.fixture(scope="session")
def real():
    return patterns(256, seed=1)


@pytest.fixture(scope="session")
def untrained():
    """The classes of both by name, and whatever else torch has."""
    return {"Convolutional": Convolutional, "Transformer": Transformer}
