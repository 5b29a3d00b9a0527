"""What the BatchNorms of a module are given in a run, beside what they remember of training.

mu = mean, sigma = sqrt(var + 1e-6) of a channel, over a batch or over each of its images. Source: arXiv 2001.00281.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

#: Keeps the gradient of a root finite.
_LEAST_VARIANCE = 1e-6


def norms_of(model: nn.Module) -> dict[str, _BatchNorm]:
    """Return the BatchNorms of `model` that remember statistics of training, by name."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None and module.running_var is not None
    }


class NormInputs:
    """Listens to norms while a `with` block runs."""

    def __init__(self, norms: Mapping[str, _BatchNorm]) -> None:
        self._norms = norms
        #: What went into each call since `clear`, with its norm.
        self.seen: list[tuple[_BatchNorm, Tensor]] = []
        self._handles: list[Any] = []

    def __enter__(self) -> Self:
        self._handles = [norm.register_forward_pre_hook(self._given, with_kwargs=True) for norm in self._norms.values()]
        return self

    def __exit__(self, *error: object) -> None:
        for handle in self._handles:
            handle.remove()

    def clear(self) -> None:
        """Forget what was seen."""
        self.seen.clear()

    def _given(self, module: Any, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        self.seen.append((module, arguments[0] if arguments else next(iter(named.values()))))


def remembered(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation (channels,) that `norm` has seen in training."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean.float(), (norm.running_var.float() + norm.eps).sqrt()


def moments(values: Tensor, *, per_sample: bool = False) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of the channels of `values` (samples, channels, ...), each (1, channels).

    `per_sample`: (samples, channels), but where a channel has one position only.
    """
    flat = values.float().flatten(2) if values.ndim > 2 else values.float()[..., None]
    if not per_sample or flat.shape[2] == 1:
        flat = flat.transpose(0, 1).flatten(1)[None]
    deviation = (flat.var(2, correction=0) + _LEAST_VARIANCE).sqrt()
    return flat.mean(2), deviation


def distance(values: Tensor, mean: Tensor, deviation: Tensor, *, per_sample: bool = False) -> Tensor:
    """Return ||mu - mean||^2 + ||sigma - deviation||^2 over channels; `per_sample`: a mean over samples."""
    own_mean, own_deviation = moments(values, per_sample=per_sample)
    return (own_mean - mean).square().sum(1).mean() + (own_deviation - deviation).square().sum(1).mean()


def batch_distance(values: Tensor, norm: _BatchNorm) -> Tensor:
    """Return the mean squared distance of a batch's mean and variance from those that `norm` remembers."""
    mean, deviation = remembered(norm)
    axes = [axis for axis in range(values.ndim) if axis != 1]
    variance, own_mean = torch.var_mean(values.float(), axes, correction=0)
    return (own_mean - mean).square().mean() + (variance - deviation.square()).square().mean()
