"""Small networks, the batch that they are trained on, and the loop that does it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn


def _images(count: int = 32) -> Tensor:
    return torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1))


def _labels(count: int = 32) -> Tensor:
    return torch.randint(0, 10, (count,), generator=torch.Generator().manual_seed(2))


@pytest.fixture
def images() -> Callable[..., Tensor]:
    """Make images (count, 1, 8, 8), the same every time."""
    return _images


@pytest.fixture
def labels() -> Callable[..., Tensor]:
    """Make labels (count,) of ten classes, the same every time."""
    return _labels


@pytest.fixture
def convolutional() -> Callable[[], nn.Module]:
    """Make a network of convolutions, one of them depthwise, and BatchNorms, the same every time."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 8, 3, groups=8, padding=1), nn.BatchNorm2d(8), nn.ReLU(),
            nn.Conv2d(8, 64, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
        )  # fmt: skip

    return made


@pytest.fixture
def perceptron() -> Callable[[], nn.Module]:
    """Make two linear layers, the same every time."""

    def made() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

    return made


@pytest.fixture
def train() -> Callable[..., Any]:
    """Train a model on the batch for so many steps, and return it in evaluation mode."""

    def trained(model: Any, steps: int, rate: float = 1e-2) -> Any:
        optimizer = torch.optim.SGD(model.parameters(), rate, momentum=0.9)
        model.train()
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(_images()), _labels()).backward()
            optimizer.step()
        return model.eval()

    return trained


@pytest.fixture
def outputs() -> Callable[[Any], Tensor]:
    """Return what a model puts out for the batch."""

    @torch.no_grad()
    def found(model: Any) -> Tensor:
        out: Tensor = model(_images())
        return out

    return found
