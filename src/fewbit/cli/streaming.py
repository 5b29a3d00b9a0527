"""`fewbit quantize --memory` and `--resume`: from disk to disk, a block at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from fewbit.cli.console import Terminal
from fewbit.cli.plan_table import plan_table
from fewbit.errors import RecipeError

if TYPE_CHECKING:
    from fewbit.folder_run import FolderRun


def require_streamed(options: dict[str, object]) -> None:
    """Raise for an option that a run with one block in memory has no use for."""
    for name, value in options.items():
        if value not in (None, "none"):
            raise RecipeError(
                f"{name} does not go with --memory and --resume: the model is never in memory as a whole, nothing is "
                "measured on it; leave it out, and use fewbit evaluate afterwards"
            )


def streamed(asked: FolderRun, terminal: Terminal, *, dry_run: bool, named: bool) -> None:
    """Show the plan of a run with what it will take, and carry it out unless it is a `dry_run`; `named`: there is -o.

    Raises:
        RecipeError: no output is named.

    """
    if not (named or dry_run):
        raise RecipeError("nowhere to write: give -o OUT, or --dry-run to see the plan only")
    with terminal.phase("plan"):
        from fewbit.streaming import prepared

        run = prepared(asked)
    made, streamed_plan = run.plan, run.work.streamed
    budget = streamed_plan.budget
    terminal.say(plan_table(made))
    for adaptation in made.adaptations:
        terminal.say(f"adapted: {adaptation}")
    for hint in made.hints:
        terminal.say(f"hint: {hint}")
    terminal.say(f"{streamed_plan}\n")
    predicted = {"memory": budget.memory, "disk": budget.disk, "seconds": round(budget.seconds, 1)}
    if dry_run:
        terminal.result("", {"model": made.model, "recipe": made.recipe.name, "predicted": predicted})
        return
    report = run.carry_out()
    terminal.result(
        f"{report}\nwritten                {asked.output}",
        {**report.to_dict(), "predicted": predicted, "output": str(asked.output)},
    )
