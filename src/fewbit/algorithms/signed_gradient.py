"""Train the trial weights of a block by the sign of the gradient, with a rate that falls to 0; the best state is kept.

p -= 2 reach / steps (1 - step / steps) sign(dL/dp), L the squared error of the output, by default relative to the power
of each row of the targets. Source: SignRound, arXiv 2309.05516, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fewbit.algorithms.block import Block, BlockSolution
from fewbit.algorithms.trial_weight import TrialWeight
from fewbit.numerics.instructions import multiplies

if TYPE_CHECKING:
    from fewbit.algorithms.autoround import AutoRound

#: After which shares of the steps the loss is taken over all samples.
_LOOKS = (0.5, 0.75, 1.0)
#: Least power of a row of the targets, as a share of the mean, that its error is divided by.
_FLOOR = 1e-6


def trained(block: Block, options: AutoRound, seed: int) -> BlockSolution:
    """Return the layers of `block` with trained codes and ranges; those that no gradient reaches keep their start."""
    trials = {
        name: TrialWeight(weight, block.starts[name], ranges=options.ranges > 0)
        for name, weight in block.weights.items()
    }
    loop = _Training(block, trials, options)
    before = best = loop.loss({name: start.dequantize() for name, start in block.starts.items()})
    found = dict(block.starts)
    looks = {round(share * options.steps) for share in _LOOKS} - {0}
    for step, samples in enumerate(_batches(len(block.targets), options, seed), 1):
        loop.step(samples, 1.0 - (step - 1) / options.steps)
        if step in looks:
            loss = loop.loss(loop.values())
            if loss < best:
                best, found = loss, {name: trial.qtensor() for name, trial in trials.items()}
    return BlockSolution(qtensors=found, losses=(before, best), remarks=loop.remarks)


class _Training:
    """A block and its trial weights."""

    def __init__(self, block: Block, trials: Mapping[str, TrialWeight], options: AutoRound) -> None:
        self._block, self._trials, self._options = block, trials, options
        self._halved = _halved(block, options)
        self._unreached: set[str] = set()

    @property
    def remarks(self) -> dict[str, tuple[str, ...]]:
        """What could not be trained, by layer."""
        return dict.fromkeys(sorted(self._unreached), ("no gradient reaches its weight: its start is kept",))

    def values(self) -> dict[str, Tensor]:
        """Return the weights as they are now."""
        return {name: trial.value() for name, trial in self._trials.items()}

    @torch.no_grad()
    def loss(self, weights: Mapping[str, Tensor]) -> float:
        """Return the mean loss over all samples."""
        samples = range(len(self._block.targets))
        return sum(float(self._loss(weights, sample)) for sample in samples) / max(len(samples), 1)

    def step(self, samples: list[int], decay: float) -> None:
        """Take a step by the gradient over some samples."""
        weights = {name: value.requires_grad_() for name, value in self.values().items()}
        total: dict[str, Tensor] = {}
        for sample in samples:
            with torch.enable_grad():
                loss = self._loss(weights, sample)
                gradients = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, gradients, strict=True):
                if gradient is not None:
                    total[name] = total[name] + gradient if name in total else gradient
        self._unreached = weights.keys() - total.keys()
        rate = 2.0 * self._options.reach / self._options.steps * decay
        for name, gradient in total.items():
            self._trials[name].move(gradient, rate, rate * self._options.ranges)

    def _loss(self, weights: Mapping[str, Tensor], sample: int) -> Tensor:
        target = _rows(self._block.targets[sample])
        with self._precision(target.device.type):
            output = _rows(self._block.forward(weights, sample))
        error = (output.to(torch.float32) - target).square().mean(-1)
        if self._options.relative:
            power = target.square().mean(-1)
            error = error / power.clamp(min=max(_FLOOR * float(power.mean()), 1e-30))
        return error.mean()

    def _precision(self, device: str) -> AbstractContextManager[object]:
        return torch.autocast(device, torch.bfloat16, enabled=self._halved)


def _halved(block: Block, options: AutoRound) -> bool:
    """Whether products are taken in bfloat16, whose errors are small beside those of up to 4 bits."""
    if options.precision != "auto":
        return options.precision == "bfloat16"
    device = next(iter(block.weights.values())).device.type
    fine = any(start.scheme.format.bits > 4 for start in block.starts.values())
    return not fine and multiplies("bfloat16", device)


def _rows(values: Tensor) -> Tensor:
    """Return an output with its features last: those of images come second."""
    return values.to(torch.float32) if values.ndim < 4 else values.to(torch.float32).movedim(1, -1)


def _batches(count: int, options: AutoRound, seed: int) -> Iterator[list[int]]:
    """Yield the samples of each step: all of them in random order, and again."""
    generator = torch.Generator().manual_seed(seed)
    waiting: list[int] = []
    for _ in range(options.steps if count else 0):
        while len(waiting) < min(options.samples, count):
            waiting += torch.randperm(count, generator=generator).tolist()
        yield waiting[: options.samples]
        del waiting[: options.samples]
