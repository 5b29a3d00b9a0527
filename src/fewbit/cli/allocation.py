"""What the options of the command line say of a search for bits, and the search itself."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.cli.console import Terminal
from fewbit.errors import RecipeError

if TYPE_CHECKING:
    from fewbit.allocation.allocation import Allocation
    from fewbit.cli.run import Run


@dataclass(frozen=True, kw_only=True)
class Search:
    """A budget, of which one at most is given, and how a recipe is searched for it."""

    bits: float | None = None
    size: str | None = None
    divergence: float | None = None
    latency: str | None = None
    candidates: str | None = None
    equal: str = "auto"
    rounds: int | None = None
    cache: Path | None = None
    #: What --input and --algorithm say of every candidate, and --keep of layers.
    input: str | None = None
    algorithm: str | None = None
    keep: tuple[str, ...] = ()

    @property
    def budget(self) -> Any:
        """What may be spent; `None`: nothing is searched for.

        Raises:
            RecipeError: several budgets, or options of a search without one.

        """
        from fewbit.allocation.budget import Budget

        given = {
            "--target-bits": self.bits, "--target-size": self.size, "--target-kl": self.divergence,
            "--target-latency": self.latency,
        }  # fmt: skip
        named = [name for name, value in given.items() if value is not None]
        if len(named) > 1:
            raise RecipeError(f"{' and '.join(named)} exclude each other: bits are allocated under one budget")
        if not named:
            idle = {"--candidates": self.candidates, "--cache": self.cache, "--rounds": self.rounds}
            for name, value in idle.items():
                if value is not None:
                    raise RecipeError(
                        f"{name} is about a search for bits; give --target-bits, --target-size or --target-kl"
                    )
            return None
        if self.bits is not None:
            return Budget("bits", self.bits)
        if self.divergence is not None:
            return Budget("divergence", self.divergence)
        own = Budget.parse(given[named[0]])
        expected = "size" if named == ["--target-size"] else "latency"
        if own.what != expected:
            raise RecipeError(f"{named[0]} {given[named[0]]!r:.40} is no {expected}; give 300MB or 20ms, say")
        return own

    def carried_out(self, run: Run, terminal: Terminal) -> Allocation:
        """Return the allocation for the model, data and layout of a run."""
        import fewbit as fb
        from fewbit.allocation.allocator import ROUNDS

        return fb.allocate(
            run.model,
            self.budget,
            self.candidates,
            to=run.to,
            dtype=run.dtype,
            calibration=run.calibration,
            evaluation=run.measured_on(),
            algorithm=self.algorithm,
            input=self.input,
            keep=self.keep,
            equal=self.equal,
            rounds=ROUNDS if self.rounds is None else self.rounds,
            cache=self.cache or scores_beside(run.output),
            options=fb.Options(device=run.device, seed=run.seed, progress=terminal),
        )


def scores_beside(output: Path) -> Path:
    """Return where scores are kept without another wish: beside what is written.

    >>> print(scores_beside(Path("here/m.gguf")), scores_beside(Path("out")))
    here/m.scores.json out.scores.json
    """
    return output.with_name(f"{output.stem if output.suffix in ('.gguf', '.onnx') else output.name}.scores.json")
