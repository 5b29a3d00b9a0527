"""AutoRound: train the rounding of all weights of a block together, by the error of the block's output.

min over v, a, b of |block(W'(v, a, b), x') - block(W, x)|^2 with W' rounded after adding offsets v under ranges scaled
by a and b; x' comes from the quantized blocks before, x from the float ones. Source: SignRound, arXiv 2309.05516.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fewbit.algorithms import Algorithm, parse_algorithm
from fewbit.algorithms.block import Block, BlockAlgorithm, BlockSolution
from fewbit.algorithms.rounding_options import RoundingOptions
from fewbit.algorithms.started import Started
from fewbit.errors import MissingExtraError, RecipeError
from fewbit.formats.integer import Int
from fewbit.schemes.scheme import Scheme
from fewbit.statistics import GUIDED


@dataclass(frozen=True, slots=True, kw_only=True)
class AutoRound(RoundingOptions, Started):
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
    relative: bool = True
    #: Let rows of the output count by the gradient of the model's loss there; the start has to be guided too.
    guided: bool = False

    def __post_init__(self) -> None:
        RoundingOptions.__post_init__(self)
        start = parse_algorithm(self.start)
        if isinstance(start, BlockAlgorithm):
            raise RecipeError(f"autoround: start = {start.name!r} trains blocks itself; use gptq or nearest")
        object.__setattr__(self, "start", start)
        if not isinstance(self.guided, bool):
            raise RecipeError(f"autoround: guided = {self.guided!r:.80} is not true or false")
        if self.guided and not set(GUIDED) & set(start.statistics):
            raise RecipeError(
                f"autoround: guided = true takes the gradients that its start asks for, and {start.name} asks for "
                'none; use start = { name = "gptq", guided = true }'
            )
        for name, least, number in (("steps", 0, 200), ("samples", 1, 4)):
            given = getattr(self, name)
            if type(given) is not int or given < least:
                raise RecipeError(f"autoround: {name} {given!r:.80} is no number of them; {number} is usual")
        for name, share in (("reach", 0.15), ("ranges", 0.1)):
            given = getattr(self, name)
            if isinstance(given, bool) or not isinstance(given, int | float) or not 0.0 <= given <= 10.0:
                raise RecipeError(f"autoround: {name} {given!r:.80} is outside [0, 10]; {share} is usual")

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "autoround"

    def problem(self, scheme: Scheme) -> str | None:
        """Return why it cannot quantize to `scheme`, with the remedy, or `None`."""
        form = scheme.format
        plain = scheme.scale_scheme is None and scheme.span is None
        if isinstance(form, Int) and 2 <= form.bits <= 8 and plain:
            return None
        return f"autoround trains integers of 2 to 8 bits, not '{scheme}'; use a scheme such as 'int4 g64', or gptq"

    @property
    def alone(self) -> Algorithm:
        """The form that trains each layer for its own output, from the second moment of its input."""
        from fewbit.algorithms.layer_autoround import LayerAutoRound

        return LayerAutoRound(self)

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
