"""How long the phases of a run take, and how much memory is held by their ends."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from fewbit.evaluation.peak_memory import peak_memory


class Clock:
    """Wall-clock seconds by phase, and the memory that was held by the end of each."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.peak_memory: dict[str, int] = {}

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Record what the block takes as `name`."""
        started = time.perf_counter()
        yield
        self.seconds[name] = time.perf_counter() - started
        most = peak_memory()
        if most is not None:
            self.peak_memory[name] = most
