"""`fewbit quantize --dry-run`: the plan of a run, and every problem that it has."""

from __future__ import annotations

from fewbit.cli.console import Terminal
from fewbit.cli.run import Run


def show_plan(run: Run, terminal: Terminal) -> None:
    """Print the plan; raise its problems, so that the exit code tells."""
    with terminal.phase("plan"):
        made = run.plan()
    data = {
        "model": made.model,
        "recipe": made.recipe.name,
        "storage_type": made.storage_type,
        "bytes_before": made.bytes_before,
        "bytes_after": made.bytes_after,
        "layers": [
            {"name": row.layer.name, "becomes": row.becomes, "bytes_before": row.bytes_before,
             "bytes_after": row.bytes_after, "notes": list(row.notes)}
            for row in made.rows
        ],
        "adaptations": list(made.adaptations),
        "hints": list(made.hints),
        "problems": list(made.problems),
    }  # fmt: skip
    terminal.result(str(made), data)
    made.require_sound()
