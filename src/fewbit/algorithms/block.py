"""What block reconstruction works on, and what it gives back: a part of a model as a function of its weights.

min over codes, scales and zero points of sum over samples |forward(weights, sample) - target|^2.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from fewbit.algorithms import Algorithm
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A part of a model whose layers are solved together."""

    #: The output for the sample of a number, with these weights (out, in) by layer; differentiable in them.
    forward: Callable[[Mapping[str, Tensor], int], Tensor]
    #: The outputs for several samples from one run; `None`: they are run one by one.
    together: Callable[[Mapping[str, Tensor], Sequence[int]], Sequence[Tensor] | None] = lambda *_: None
    #: What the float part puts out for each sample.
    targets: Sequence[Tensor]
    #: Float weights (out, in) by layer.
    weights: Mapping[str, Tensor]
    #: The quantized weights to start from, with their schemes.
    starts: Mapping[str, QTensor]
    #: How much an error of each row of each target counts, (rows,), of mean 1 over all; `None`: not known.
    row_weights: Sequence[Tensor] | None = None
    #: Finds how much an error of each number of each target counts for the whole model; `None`: not known.
    curvature: Callable[[], Sequence[Tensor] | None] = lambda: None


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockSolution:
    """The quantized weights of a block, and how they came about."""

    qtensors: Mapping[str, QTensor]
    #: The loss over all samples with the weights at the start, and with these.
    losses: tuple[float, float]
    #: What fell back, by layer.
    remarks: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@runtime_checkable
class BlockAlgorithm(Algorithm, Protocol):
    """An algorithm that solves the layers of a block together, from the solution that it gives for each alone."""

    @property
    def alone(self) -> Algorithm:
        """What solves each layer by itself, for models that run with no trial weights."""

    def solve_block(self, block: Block, seed: int) -> BlockSolution:
        """Return the layers of `block` solved; the same `seed` gives the same bytes."""

    def problem(self, scheme: Scheme) -> str | None:
        """Return why it cannot quantize to `scheme`, with the remedy, or `None`."""
