"""Tables in Markdown, printed line by line while a benchmark goes on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def table(heads: Sequence[str], words: int) -> None:
    """Print the head of a table whose first columns hold words."""
    print()
    line(*heads)
    line(*["---"] * words, *["---:"] * (len(heads) - words))


def line(*cells: Any) -> None:
    """Print a line of it."""
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)
