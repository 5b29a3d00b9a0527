"""BRECQ: learn whether the weights of a block go up or down together, by the error of the block's output.

min over V of |g (block(W'(V), x') - block(W, x))|^2 + lambda sum(1 - |2 h(V) - 1|^beta), W' and h as in AdaRound, g = 1
or the gradient of the loss; x' comes from the quantized blocks before, x from the float ones. Source: arXiv 2102.05426.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewbit.algorithms import Algorithm, parse_algorithm, unpaired
from fewbit.algorithms.annealing import Annealing
from fewbit.algorithms.block import Block, BlockSolution
from fewbit.algorithms.started import Started
from fewbit.errors import MissingExtraError, RecipeError

_STARTS = ("adaround", "nearest")


@dataclass(frozen=True, slots=True, kw_only=True)
class Brecq(Annealing, Started):
    """Block reconstruction by learned rounding, under the scales of the range method."""

    #: Steps for each block; 0 leaves the start as it is.
    steps: int = 500
    #: What solves each layer before its block is trained: `adaround`, with options if you like, or `nearest`.
    start: str | dict[str, Any] | Algorithm = "adaround"
    #: Samples, calls of the block, whose gradients make a step.
    samples: int = 2
    #: What a rounding between up and down costs at most, in the loss of the start divided among the weights.
    regularization: float = 10.0
    #: Weigh the error of each number of the output by the square of the loss's gradient there.
    fisher: bool = False

    def __post_init__(self) -> None:
        Annealing.__post_init__(self)
        # What the layers before have lost is the block's to make up for.
        start = unpaired(parse_algorithm(self.start))
        if start.name not in _STARTS:
            why = "rounds to other codes than the two around each weight"
            raise RecipeError(f"brecq: start = {start.name!r:.80} {why}; use {' or '.join(_STARTS)}")
        object.__setattr__(self, "start", start)
        if type(self.samples) is not int or self.samples < 1:
            raise RecipeError(f"brecq: samples {self.samples!r:.80} is no number of them; 2 is usual")
        if not isinstance(self.fisher, bool):
            raise RecipeError(f"brecq: fisher = {self.fisher!r:.80} is not true or false")
        if self.fisher and self.relative:
            raise RecipeError("brecq: fisher and relative weigh errors by different things; use one of them")

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "brecq"

    @property
    def alone(self) -> Algorithm:
        """AdaRound, as the start if it is that, for models that give no gradients."""
        return self.first if self.first.name == "adaround" else unpaired(parse_algorithm("adaround"))

    def solve_block(self, block: Block, seed: int) -> BlockSolution:
        """Return the layers of `block` trained from their starts.

        Raises:
            MissingExtraError: torch is not installed.

        """
        try:
            from fewbit.algorithms.block_rounding import rounded_together
        except ImportError as error:
            raise MissingExtraError(f"brecq needs {error.name}; pip install 'fewbit[torch]'") from error
        return rounded_together(block, self, seed)
