"""Train the trial weights of a block by the sign of the gradient, with a rate that falls to 0; the best state is kept.

p -= 2 reach / steps (1 - step / steps) sign(dL/dp), L the squared error of the output, its rows by default relative to
their power, or guided by the gradient of the model's loss. Source: SignRound, arXiv 2309.05516, algorithm 1.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewbit.algorithms.block import Block, BlockSolution
from fewbit.algorithms.block_loss import BlockLoss, samples_of
from fewbit.algorithms.trial_weight import TrialWeight

if TYPE_CHECKING:
    from fewbit.algorithms.autoround import AutoRound

#: After which shares of the steps the loss is taken over all samples.
_LOOKS = (0.5, 0.75, 1.0)


def trained(block: Block, options: AutoRound, seed: int) -> BlockSolution:
    """Return the layers of `block` with trained codes and ranges; those that no gradient reaches keep their start."""
    trials = {
        name: TrialWeight(weight, block.starts[name], ranges=options.ranges > 0)
        for name, weight in block.weights.items()
    }
    loss = BlockLoss(block, relative=options.relative, precision=options.precision, guided=options.guided)
    before = best = loss.mean({name: start.dequantize() for name, start in block.starts.items()})
    found = dict(block.starts)
    looks = {round(share * options.steps) for share in _LOOKS} - {0}
    for step, samples in enumerate(samples_of(block, options.steps, options.samples, seed), 1):
        rate = 2.0 * options.reach / options.steps * (1.0 - (step - 1) / options.steps)
        for name, gradient in loss.gradients({name: own.value() for name, own in trials.items()}, samples).items():
            trials[name].move(gradient, rate, rate * options.ranges)
        if step in looks:
            now = loss.mean({name: own.value() for name, own in trials.items()})
            if now < best:
                best, found = now, {name: own.qtensor() for name, own in trials.items()}
    return BlockSolution(qtensors=found, losses=(before, best), remarks=loss.remarks)
