"""`fewbit quantize --memory` and `--resume`: from disk to disk, a block at a time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from fewbit.byte_size import byte_size
from fewbit.cli.console import Terminal
from fewbit.cli.run import Run, say_plan
from fewbit.errors import RecipeError


@dataclass(frozen=True)
class Streaming:
    """What the two options say: a limit such as `8GB`, and whether what is there is gone on with."""

    memory: str | None = None
    resume: bool = False

    @property
    def asked(self) -> bool:
        """Whether the model is read block by block."""
        return self.memory is not None or self.resume

    @staticmethod
    def require_alone(options: Mapping[str, object]) -> None:
        """Raise `RecipeError` for an option that a run with one block in memory has no use for."""
        for name, value in options.items():
            if value not in (None, "none"):
                raise RecipeError(
                    f"{name} does not go with --memory and --resume: the model is never in memory as a whole, nothing "
                    "is measured on it; leave it out, and use fewbit evaluate afterwards"
                )

    def carry_out(self, run: Run, terminal: Terminal, *, dry_run: bool) -> None:
        """Show the plan of a run with what it will take, and carry it out unless it is a `dry_run`."""
        with terminal.phase("plan"):
            from fewbit.folder_run import FolderRun
            from fewbit.options import Options
            from fewbit.streaming import prepared

            folders = prepared(
                FolderRun(
                    model=run.model, output=run.output, recipe=run.recipe, to=run.to, dtype=run.dtype,
                    calibration=run.calibration, overwrite=run.overwrite, resume=self.resume,
                    memory=None if self.memory is None else byte_size(self.memory),
                    shard_bytes=None if run.shard_size is None else byte_size(run.shard_size),
                    options=Options(device=run.device, seed=run.seed, progress=terminal, command=run.command),
                )
            )  # fmt: skip
        made, streamed_plan = folders.plan, folders.work.streamed
        budget = streamed_plan.budget
        say_plan(made, terminal)
        terminal.say(f"{streamed_plan}\n")
        predicted = {"memory": budget.memory, "disk": budget.disk, "seconds": round(budget.seconds, 1)}
        if dry_run:
            terminal.result("", {"model": made.model, "recipe": made.recipe.name, "predicted": predicted})
            return
        report = folders.carry_out()
        terminal.result(
            f"{report}\nwritten                {run.output}",
            {**report.to_dict(), "predicted": predicted, "output": str(run.output)},
        )
