"""A row of the table of a quantized function: an operation that multiplies, and what it became."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """An operation of the float function."""

    #: Path of the parameter that is its weight; empty where it has none.
    weight: str
    #: Name of its primitive, and of the scopes around it, with points between; empty of a weight that is changed first.
    primitive: str
    scope: str
    #: `linear`, `conv`, `embedding`; of what has no weight `product`.
    kind: str
    #: The weight as (out, in), and how many of them it is a stack of.
    shape: tuple[int, ...] = ()
    stack: tuple[int, ...] = ()
    #: Notation of the schemes, or `float`.
    becomes: str = "float"
    #: What it runs as.
    runs: str = "as it was"
    #: Why it stays float; what fell back.
    notes: tuple[str, ...] = ()

    def __str__(self) -> str:
        where = f" in {self.scope}" if self.scope else ""
        notes = f" ({'; '.join(self.notes)})" if self.notes else ""
        return f"{self.weight or '-'}: {self.primitive}{where}, {self.becomes}, {self.runs}{notes}"
