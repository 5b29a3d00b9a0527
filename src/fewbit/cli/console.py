"""What the command line prints: results to standard output, bars and errors to standard error.

Three manners: normal, quiet (`-q`: nothing but errors), and JSON (`--json`: one object on standard output).
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

Item = TypeVar("Item")


@dataclass(frozen=True)
class Terminal:
    """Where a command reports; also a `fewbit.interfaces.Progress`."""

    quiet: bool = False
    as_json: bool = False

    def say(self, text: str) -> None:
        """Print a line for people."""
        if not (self.quiet or self.as_json):
            sys.stdout.write(text + "\n")
            sys.stdout.flush()

    def result(self, text: str, data: dict[str, Any]) -> None:
        """Print a command's result: text for people, or one JSON object."""
        if self.as_json:
            from fewbit.report.strict_json import json_text

            sys.stdout.write(json_text(data))
        else:
            self.say(text)

    def track(self, items: Sequence[Item], description: str) -> Iterator[Item]:
        """Yield `items` under a bar with the time left."""
        if self.quiet or self.as_json:
            yield from items
            return
        with _bar() as bar:
            yield from bar.track(items, description=description)

    def phase(self, description: str) -> Progress:
        """Return a context manager that shows `description` and the time it takes."""
        console = Console(stderr=True)
        hidden = self.quiet or self.as_json or not console.is_terminal
        columns = (TextColumn("{task.description:10}"), TimeElapsedColumn())
        bar = Progress(*columns, console=console, transient=True, disable=hidden)
        bar.add_task(description, total=None)
        return bar


def _bar() -> Progress:
    return Progress(
        TextColumn("{task.description:10}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )
