"""How far a phase has come: shown by someone, or by no one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

Item = TypeVar("Item")


class Progress(Protocol):
    """Shows how far a phase has come."""

    def track(self, items: Sequence[Item], description: str) -> Iterator[Item]:
        """Yield `items`, showing the count done and the time left."""

    def phase(self, description: str) -> AbstractContextManager[object]:
        """Show `description` and the time it takes while the block runs: work whose length nobody knows."""


class Silent:
    """The progress that shows nothing."""

    def track(self, items: Sequence[Item], description: str) -> Iterator[Item]:  # noqa: ARG002
        """Yield `items`."""
        yield from items

    def phase(self, description: str) -> AbstractContextManager[object]:  # noqa: ARG002
        """Show nothing."""
        return nullcontext()
