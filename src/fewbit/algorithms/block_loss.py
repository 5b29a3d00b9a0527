"""How far the output of a block under trial weights is from its target, and the gradients of that.

L = mean over rows t of c_t |forward(weights) - target|^2, c_t = 1 / p_t with p_t the power of the target row where
errors are relative, g_t where the mean squares of the loss's gradient guide, sqrt(g_t / p_t) where both; or
each number weighted by its curvature.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager

import torch
from torch import Tensor

from fewbit.algorithms.block import Block
from fewbit.numerics.instructions import multiplies

_UNKNOWN = "no gradient at the output of its block is known: every number of it counts alike"
_UNGUIDED = "no gradient at the output of its block is known: rows count as without `guided`"
#: Least power of a row of the targets, as a share of the mean, that its error is divided by.
_FLOOR = 1e-6


class BlockLoss:
    """The loss of a block as a function of its weights (out, in)."""

    def __init__(
        self, block: Block, *, relative: bool, precision: str, fisher: bool = False, guided: bool = False
    ) -> None:
        """Prepare; products are taken in the type `precision`, for `auto` in what is fast and fine enough."""
        self._block, self._relative, self._halved = block, relative, _halved(block, precision)
        self._curvature = _normalized(block.curvature()) if fisher else None
        self._guides = block.row_weights if guided else None
        unknown = {_UNKNOWN: fisher and self._curvature is None, _UNGUIDED: guided and self._guides is None}
        self._common = tuple(remark for remark, there in unknown.items() if there)
        #: Layers that the last gradients did not reach.
        self.unreached: set[str] = set()

    @property
    def remarks(self) -> dict[str, tuple[str, ...]]:
        """What could not be trained, or not as asked, by layer."""
        unreached = dict.fromkeys(sorted(self.unreached), ("no gradient reaches its weight: its start is kept",))
        names = self._block.weights if self._common else unreached
        return {name: (*self._common, *unreached.get(name, ())) for name in names}

    @torch.no_grad()
    def mean(self, weights: Mapping[str, Tensor]) -> float:
        """Return the mean loss over all samples."""
        samples = range(len(self._block.targets))
        return sum(float(self._of(weights, sample)) for sample in samples) / max(len(samples), 1)

    def gradients(self, values: Mapping[str, Tensor], samples: list[int]) -> dict[str, Tensor]:
        """Return the gradients by layer, summed over some samples, of the layers that they reach."""
        weights = {name: value.requires_grad_() for name, value in values.items()}
        total: dict[str, Tensor] = {}
        with torch.enable_grad():
            for loss in self._losses(weights, samples):
                gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
                for name, gradient in zip(weights, gradients, strict=True):
                    if gradient is not None:
                        total[name] = total[name] + gradient if name in total else gradient
        self.unreached = weights.keys() - total.keys()
        return total

    def _losses(self, weights: Mapping[str, Tensor], samples: Sequence[int]) -> Iterator[Tensor]:
        """Yield the loss of all samples where they run at once, else of each: its graph is gone before the next."""
        with self._precision():
            outputs = self._block.together(weights, samples)
        if outputs is None:
            yield from (self._of(weights, sample) for sample in samples)
        else:
            yield torch.stack([self._error(*own) for own in zip(outputs, samples, strict=True)]).sum()

    def _of(self, weights: Mapping[str, Tensor], sample: int) -> Tensor:
        with self._precision():
            output = self._block.forward(weights, sample)
        return self._error(output, sample)

    def _error(self, output: Tensor, sample: int) -> Tensor:
        """Return how far the output for a sample is from its target."""
        target = features_last(self._block.targets[sample].to(torch.float32))
        output = features_last(output.to(torch.float32))
        squares = (output - target).square()
        error = (squares if self._curvature is None else squares * features_last(self._curvature[sample])).mean(-1)
        guide = None if self._guides is None else self._guides[sample].reshape(error.shape)
        if self._relative:
            power = target.square().mean(-1)
            power = power.clamp(min=max(_FLOOR * float(power.mean()), 1e-30))
            error = error / power if guide is None else error * (guide / power).sqrt()
        elif guide is not None:
            error = error * guide
        return error.mean()

    def _precision(self) -> AbstractContextManager[object]:
        return torch.autocast(self._block.targets[0].device.type, torch.bfloat16, enabled=self._halved)


def samples_of(block: Block, steps: int, number: int, seed: int) -> Iterator[list[int]]:
    """Yield the samples of each step, a `number` of them: all in random order, and again."""
    generator, count = torch.Generator().manual_seed(seed), len(block.targets)
    waiting: list[int] = []
    for _ in range(steps if count else 0):
        while len(waiting) < min(number, count):
            waiting += torch.randperm(count, generator=generator).tolist()
        yield waiting[:number]
        del waiting[:number]


def _halved(block: Block, precision: str) -> bool:
    """Whether products are taken in bfloat16, whose errors are small beside those of up to 4 bits."""
    if precision != "auto":
        return precision == "bfloat16"
    device = next(iter(block.weights.values())).device.type
    fine = any(start.scheme.format.bits > 4 for start in block.starts.values())
    return not fine and multiplies("bfloat16", device)


def _normalized(curvature: Sequence[Tensor] | None) -> list[Tensor] | None:
    """Return the curvature of all samples with a mean of 1; `None` where there is none."""
    if not curvature:
        return None
    mean = sum(float(own.double().sum()) for own in curvature) / sum(own.numel() for own in curvature)
    return [own.to(torch.float32) / mean for own in curvature] if 0.0 < mean < float("inf") else None


def features_last(values: Tensor) -> Tensor:
    """Return an output with its features last: those of images come second."""
    return values if values.ndim < 4 else values.movedim(1, -1)
