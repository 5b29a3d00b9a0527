"""What images a module takes: their shape, as it says itself or as the user does, and the values that they have."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import CalibrationError
from fewbit.synthetic.options import Synthetic

#: Where a range of values is known, a deviation is this part of it: what photographs have, roughly.
_DEVIATION = 0.25


@dataclass(frozen=True, slots=True)
class ImageForm:
    """The shape of an image, and the mean, deviation and bounds of its channels."""

    shape: tuple[int, ...]
    #: float32, of shape (channels or 1, 1, ...), to go with an image.
    mean: Tensor
    deviation: Tensor
    #: `None`: not known.
    low: Tensor | None = None
    high: Tensor | None = None

    @classmethod
    def of(cls, model: nn.Module, given: Synthetic) -> ImageForm:
        """Return the form of the images that `model` takes; raises `CalibrationError` where no one says it."""
        shape = given.shape or _preprocessed(given) or declared(model)
        if shape is None:
            channels = next((own.in_channels for own in model.modules() if isinstance(own, nn.Conv2d)), 3)
            method = "" if given.method == "auto" else f"method={given.method!r}, "
            raise CalibrationError(
                f"{type(model).__name__} does not say which shape of images it takes; give it, such as "
                f"calibration=Synthetic({method}shape=({channels}, 224, 224)), or --shape {channels},224,224"
            )
        if given.bounds is None:
            return cls(shape, _column([0.0], shape), _column([1.0], shape))
        low, high = (_column(ends, shape) for ends in given.bounds)
        return cls(shape, (low + high) / 2, (high - low) * _DEVIATION, low, high)

    def noise(self, draw: torch.Generator, count: int) -> Tensor:
        """Return `count` images of normal noise, float32 (count, *shape), with this mean and deviation."""
        return self.within(self.mean + self.deviation * torch.randn(count, *self.shape, generator=draw))

    def within(self, images: Tensor) -> Tensor:
        """Return `images` with values beyond the bounds at the bounds."""
        if self.low is None or self.high is None:
            return images
        return images.clamp(self.low.to(images.device), self.high.to(images.device))


def declared(model: nn.Module) -> tuple[int, ...] | None:
    """Return the shape of images that a model of timm, transformers or torch itself declares, or `None`."""
    for name in ("pretrained_cfg", "default_cfg"):
        table = getattr(model, name, None)
        size = table.get("input_size") if isinstance(table, Mapping) else None
        if _are_sizes(size, 3):
            return tuple(size)  # type: ignore[arg-type]
    config = getattr(model, "config", None)
    side = getattr(config, "image_size", None)
    sides = (side, side) if type(side) is int else side
    channels = getattr(config, "num_channels", None)
    found = (channels, *sides) if isinstance(sides, (tuple, list)) else ()
    return found if _are_sizes(found, 3) else None


def _preprocessed(given: Synthetic) -> tuple[int, ...] | None:
    own: Any = given.preprocessing
    if own is not None and own.layout != "NCHW":
        raise CalibrationError(f"layout {own.layout} of the preprocessing; torch modules take images as NCHW")
    return own.shape if own is not None else None


def _column(values: Any, shape: tuple[int, ...]) -> Tensor:
    if len(values) not in (1, shape[0]):
        raise CalibrationError(f"values of {len(values)} channels and images of {shape[0]}; give both alike")
    return torch.tensor(values, dtype=torch.float32).reshape(-1, *(1 for _ in shape[1:]))


def _are_sizes(sizes: Any, count: int) -> bool:
    given = isinstance(sizes, (tuple, list)) and len(sizes) == count
    return given and all(type(size) is int and 0 < size <= 1 << 14 for size in sizes)
