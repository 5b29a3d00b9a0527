"""Solves and calibrates here, one after the other: the default."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from fewbit.errors import FewbitError
from fewbit.execution.executor import CalibrationTask, Outcome, SolveTask, outcome_of
from fewbit.interfaces import CalibrationRun


@dataclass(frozen=True, slots=True)
class InProcess:
    """One solve at a time; a weight is read when its turn has come, and no sooner."""

    at_once = 1
    notes = ()

    def require(self) -> None:
        """Nothing is missing."""

    @contextmanager
    def opened(self) -> Iterator[InProcess]:
        """Return itself."""
        yield self

    def solve(self, tasks: Sequence[SolveTask]) -> Generator[Outcome]:
        """Yield the tasks solved, in their order."""
        for task in tasks:
            weight, scheme = task.read()
            try:
                outcome = outcome_of(task.algorithm, weight, task.statistics, scheme)
            except FewbitError as error:
                raise task.failed(error) from error
            yield outcome

    def calibrate(self, task: CalibrationTask) -> CalibrationRun:
        """Return the run of all batches."""
        return task.whole()

    def __str__(self) -> str:
        return "in process"
