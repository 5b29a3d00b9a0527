"""AutoRound: train the rounding of all weights of a block together, by the error of the block's output.

min over v, a, b of |block(W'(v, a, b), x') - block(W, x)|^2 with W' rounded after adding offsets v under ranges scaled
by a and b; x' comes from the quantized blocks before, x from the float ones. Source: SignRound, arXiv 2309.05516.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from fewbit.algorithms import Algorithm, parse_algorithm
from fewbit.algorithms.block import Block, BlockAlgorithm, BlockSolution
from fewbit.algorithms.solution import Solution
from fewbit.errors import MissingExtraError, RecipeError, SchemeError
from fewbit.formats.integer import Int
from fewbit.numerics.namespace import Array
from fewbit.schemes.scheme import Scheme

_PRECISIONS = ("auto", "float32", "bfloat16")


@dataclass(frozen=True, slots=True)
class AutoRound:
    """Block reconstruction by the sign of the gradient, from the solution of another algorithm."""

    #: Steps for each block; 0 leaves the start as it is.
    steps: int = 200
    #: The algorithm that solves each layer before its block is trained: a name, a table with options, or an algorithm.
    start: str | dict[str, Any] | Algorithm = "gptq"
    #: Samples, calls of the block, whose gradients make a step.
    samples: int = 4
    #: How far the steps of an offset go together, in codes; the first is 2 / `steps` of that, the last almost 0.
    reach: float = 0.15
    #: Train factors on the ends of the ranges too, whose steps are this share of those of an offset; 0: ranges stay.
    ranges: float = 0.1
    #: Divide the error of each row of the output by its power, so that every token counts alike.
    relative: bool = True
    #: Type of products while training; `auto` is bfloat16 for up to 4 bits where the device has instructions for it.
    precision: Literal["auto", "float32", "bfloat16"] = "auto"

    def __post_init__(self) -> None:
        start = parse_algorithm(self.start)
        if isinstance(start, BlockAlgorithm):
            raise RecipeError(f"autoround: start = {start.name!r} trains blocks itself; use gptq or nearest")
        object.__setattr__(self, "start", start)
        for name, least, number in (("steps", 0, 200), ("samples", 1, 4)):
            given = getattr(self, name)
            if type(given) is not int or given < least:
                raise RecipeError(f"autoround: {name} {given!r:.80} is no number of them; {number} is usual")
        for name, share in (("reach", 0.15), ("ranges", 0.1)):
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int | float) or not 0.0 <= given <= 10.0:
                raise RecipeError(f"autoround: {name} {given!r:.80} is outside [0, 10]; {share} is usual")
        if not isinstance(self.relative, bool):
            raise RecipeError(f"autoround: relative = {self.relative!r:.80} is not true or false")
        if self.precision not in _PRECISIONS:
            raise RecipeError(f"autoround: precision {self.precision!r:.80} is none of {', '.join(_PRECISIONS)}")

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "autoround"

    @property
    def statistics(self) -> tuple[str, ...]:
        """What the start asks for."""
        return self._start.statistics

    def problem(self, scheme: Scheme) -> str | None:
        """Return why it cannot quantize to `scheme`, with the remedy, or `None`."""
        form = scheme.format
        plain = scheme.scale_scheme is None and scheme.span is None
        if isinstance(form, Int) and 2 <= form.bits <= 8 and plain:
            return None
        return f"autoround trains integers of 2 to 8 bits, not '{scheme}'; use a scheme such as 'int4 g64', or gptq"

    def __call__(self, weight: Array, statistics: Any, scheme: Scheme) -> Solution:
        """Return `weight` (out, in) as the start solves it; `statistics` are those that it asks for.

        Raises:
            SchemeError: the scheme is not one of integers.

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
            from fewbit.algorithms.signed_gradient import trained
        except ImportError as error:
            raise MissingExtraError(f"autoround needs {error.name}; pip install 'fewbit[torch]'") from error
        return trained(block, self, seed)

    @property
    def _start(self) -> Algorithm:
        return parse_algorithm(self.start)
