"""BRECQ: learn whether the weights of a block go up or down together, by the error of the block's output.

min over V of |block(W'(V), x') - block(W, x)|^2 + lambda sum(1 - |2 h(V) - 1|^beta), with W' and h as in AdaRound; x'
comes from the quantized blocks before, x from the float ones. Source: arXiv 2102.05426.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fewbit.algorithms import Algorithm, parse_algorithm
from fewbit.algorithms.annealing import Annealing
from fewbit.algorithms.block import Block, BlockSolution
from fewbit.algorithms.rounding_options import neighbours_problem, require_precision
from fewbit.algorithms.solution import Solution
from fewbit.errors import MissingExtraError, RecipeError, SchemeError
from fewbit.numerics.namespace import Array
from fewbit.schemes.scheme import Scheme

_STARTS = ("adaround", "nearest")


@dataclass(frozen=True, slots=True)
class Brecq:
    """Block reconstruction by learned rounding, under the scales of the range method."""

    #: Steps for each block; 0 leaves the start as it is.
    steps: int = 500
    #: What solves each layer before its block is trained: `adaround`, with options if you like, or `nearest`.
    start: str | dict[str, Any] | Algorithm = "adaround"
    #: Samples, calls of the block, whose gradients make a step.
    samples: int = 2
    #: What a rounding between up and down costs at most, in the loss of the start divided among the weights.
    regularization: float = 10.0
    #: The share of the steps before that counts.
    warm: float = 0.2
    #: How far the steps of a variable go together; 2.4 are from the middle to up or down.
    reach: float = 10.0
    #: Divide the error of each row of the output by its power, so that every position counts alike.
    relative: bool = False
    #: Type of products while learning; `auto` is bfloat16 where the device has instructions for it.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        _ = self.annealing
        start = parse_algorithm(self.start)
        if start.name not in _STARTS:
            why = "rounds to other codes than the two around each weight"
            raise RecipeError(f"brecq: start = {start.name!r:.80} {why}; use {' or '.join(_STARTS)}")
        object.__setattr__(self, "start", start)
        if type(self.samples) is not int or self.samples < 1:
            raise RecipeError(f"brecq: samples {self.samples!r:.80} is no number of them; 2 is usual")
        if not isinstance(self.relative, bool):
            raise RecipeError(f"brecq: relative = {self.relative!r:.80} is not true or false")
        require_precision(self.name, self.precision)

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "brecq"

    @property
    def annealing(self) -> Annealing:
        """The schedule of its steps."""
        return Annealing(
            name=self.name, steps=self.steps, regularization=self.regularization, warm=self.warm, reach=self.reach
        )

    @property
    def statistics(self) -> tuple[str, ...]:
        """What the start asks for."""
        return self._start.statistics

    def problem(self, scheme: Scheme) -> str | None:
        """Return why it cannot quantize to `scheme`, with the remedy, or `None`."""
        return neighbours_problem(self.name, scheme)

    @property
    def alone(self) -> Algorithm:
        """AdaRound, as the start if it is that, for models that give no gradients."""
        return self._start if self._start.name == "adaround" else parse_algorithm("adaround")

    def __call__(self, weight: Array, statistics: Any, scheme: Scheme) -> Solution:
        """Return `weight` (out, in) as the start solves it; `statistics` are those that it asks for.

        Raises:
            SchemeError: the scheme has more than 8 bits.

        """
        if problem := self.problem(scheme):
            raise SchemeError(problem)
        return self._start(weight, statistics, scheme)

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

    @property
    def _start(self) -> Algorithm:
        return parse_algorithm(self.start)
