"""Learn the roundings of all layers of a block for its output, from samples: those of AdaRound, by gradients.

L / L_0 sum over weights of 1 + lambda sum(1 - |2 h - 1|^beta), L_0 being the loss of the start. Source: BRECQ, arXiv
2102.05426, section 3.3.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from fewbit.algorithms.block import Block, BlockSolution
from fewbit.algorithms.block_loss import BlockLoss, samples_of
from fewbit.algorithms.neighbours import Neighbours
from fewbit.algorithms.soft_rounding import SoftRounding

if TYPE_CHECKING:
    from fewbit.algorithms.brecq import Brecq


@torch.no_grad()
def rounded_together(block: Block, options: Brecq, seed: int) -> BlockSolution:
    """Return the layers of `block` with learned codes under the scales of their starts, or these if they do better.

    A layer that no gradient reaches keeps its start.
    """
    loss = BlockLoss(block, relative=options.relative, precision=options.precision, fisher=options.fisher)
    before = loss.mean({name: start.dequantize() for name, start in block.starts.items()})
    if not before or not options.steps:
        return BlockSolution(qtensors=block.starts, losses=(before, before))
    soft = {
        name: SoftRounding(Neighbours.of(weight, block.starts[name]), options) for name, weight in block.weights.items()
    }
    unit = sum(weight.numel() for weight in block.weights.values()) / before
    for samples in samples_of(block, options.steps, options.samples, seed):
        slopes = loss.gradients({name: own.value() for name, own in soft.items()}, samples)
        for name, slope in slopes.items():
            soft[name].move(slope.mul_(unit / len(samples)))
    found = {name: block.starts[name] if name in loss.unreached else own.qtensor() for name, own in soft.items()}
    after = loss.mean({name: own.dequantize() for name, own in found.items()})
    if after < before:
        return BlockSolution(qtensors=found, losses=(before, after), remarks=loss.remarks)
    return BlockSolution(qtensors=block.starts, losses=(before, before), remarks=loss.remarks)
