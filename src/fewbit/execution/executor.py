"""The contract of who solves layers and runs calibration batches; who it is changes no bit of what comes out.

A solve is a pure function of weight, statistics, scheme and algorithm. Batches are divided in parts of a size that the
plan records; the statistics of the parts are merged in the order of the samples, whoever has computed them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from fewbit.algorithms import Algorithm
from fewbit.algorithms.solution import Solution
from fewbit.catalogue import parse_entry
from fewbit.errors import FewbitError
from fewbit.evaluation.fidelity import decibels, output_power
from fewbit.float_bias import FloatBias
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces import Activations, CalibrationRun, Frontend, Layer, Replacement
from fewbit.numerics.namespace import Array, is_torch
from fewbit.qtensor import QTensor, quantize
from fewbit.schemes.scheme import Scheme
from fewbit.statistics.grouped_moment import GroupedMoment
from fewbit.statistics.partials import PART, Parts
from fewbit.statistics.second_moment import SecondMoment
from fewbit.transforms.scope import Scope

#: Executors by name.
EXECUTORS = {"in-process": "fewbit.execution.in_process:InProcess", "ray": "fewbit.execution.ray:Ray"}


@dataclass(frozen=True, slots=True)
class SolveTask:
    """A layer to be solved."""

    name: str
    algorithm: Algorithm
    #: By name, as the algorithm asks for them; layers that share an input share the objects.
    statistics: Mapping[str, Any]
    #: Gives its weight (out, in) and the scheme, when its turn has come.
    read: Callable[[], tuple[Array, Scheme]]
    #: About how many multiplications it takes.
    cost: float = 0.0

    def failed(self, error: FewbitError) -> FewbitError:
        """Return the error with the name of the layer."""
        return type(error)(f"{self.name}: {error}")


@dataclass(frozen=True, slots=True)
class Outcome:
    """A layer solved."""

    solution: Solution
    #: What the algorithm alone took.
    seconds: float
    #: SQNR in dB of its output on the calibration data, rounded to nearest and as solved.
    nearest_sqnr: float | None = None
    solved_sqnr: float | None = None


def outcome_of(algorithm: Algorithm, weight: Array, statistics: Mapping[str, Any], scheme: Scheme) -> Outcome:
    """Return `weight` (out, in) solved, and what its output loses where second moments of its inputs are known."""
    started = time.perf_counter()
    solution = algorithm(weight, statistics, scheme)
    _wait_for(solution.qtensor.codes)
    seconds = time.perf_counter() - started
    forms: list[Callable[[], QTensor]] = [lambda: quantize(weight, scheme), lambda: solution.qtensor]
    return Outcome(solution, seconds, *output_sqnr(weight, statistics, *forms))


def _wait_for(array: Array) -> None:
    """Wait until the GPU that `array` lies on has done its work, which goes on while Python does."""
    if is_torch(array) and array.device.type == "cuda":
        import torch

        torch.cuda.synchronize(array.device)


def output_sqnr(
    weight: Array, statistics: Mapping[str, Any], *forms: Callable[[], QTensor]
) -> tuple[float | None, ...]:
    """Return the SQNR in dB of the output with each of `forms` for `weight`; `None`: no second moment is known."""
    seen = next((own for own in statistics.values() if isinstance(own, SecondMoment | GroupedMoment)), None)
    if seen is None or not seen.count:
        return (None,) * len(forms)
    moment = seen.result()
    signal = output_power(weight, moment)
    return tuple(decibels(signal, output_power(make().dequantize() - weight, moment)) for make in forms)


class SettledLayer(Protocol):
    """A layer that is solved, as far as it takes to install its quantized form elsewhere."""

    @property
    def replacement(self) -> Replacement:
        """Its two forms."""

    @property
    def activations(self) -> Activations:
        """How its input and output are rounded."""

    @property
    def bias(self) -> IntegerBias | FloatBias | None:
        """Its new bias; `None`: its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CalibrationTask:
    """A calibration to be run."""

    frontend: Frontend
    model: Any
    layers: Sequence[Layer]
    batches: Sequence[Any]
    #: The statistics of each layer that is to be quantized.
    wanted: Mapping[str, Sequence[str]]
    #: What has been solved so far; it grows while the calibration goes on.
    solved: Mapping[str, SettledLayer]
    sequential: bool = True
    prepare: Callable[[Scope], None] | None = None
    trained: Collection[str] = ()
    #: Batches of a part.
    part: int = PART

    def whole(self) -> CalibrationRun:
        """Return the run of all batches in this process."""
        return self.frontend.calibrate(
            self.model, self.layers, self.wanted, self.batches, sequential=self.sequential, prepare=self.prepare,
            trained=self.trained, parts=Parts(self.part),
        )  # fmt: skip

    @contextmanager
    def floating(self) -> Iterator[None]:
        """Put the float forms back into the model while the block runs."""
        for own in self.solved.values():
            own.replacement.restore()
        try:
            yield
        finally:
            for own in self.solved.values():
                own.replacement.install()


class Executor(Protocol):
    """Someone who solves layers and runs calibration batches."""

    @property
    def at_once(self) -> int:
        """How many solves are worth handing over together."""

    @property
    def notes(self) -> Sequence[str]:
        """What was done otherwise than asked, for the report."""

    def solve(self, tasks: Sequence[SolveTask]) -> Generator[Outcome]:
        """Yield the tasks solved, in their order; a `FewbitError` names the layer."""

    def calibrate(self, task: CalibrationTask) -> CalibrationRun:
        """Return a calibration whose statistics are those of `task.whole()` to the bit."""


@runtime_checkable
class Place(Protocol):
    """Where an executor is to be had."""

    def require(self) -> None:
        """Raise an error for what can be known to be missing before any work."""

    def opened(self) -> AbstractContextManager[Executor]:
        """Return the executor, for as long as the context is open."""


def parse_executor(value: Any) -> Place:
    """Return the place for a name, a table with `name` and options, or a place.

    >>> parse_executor("in-process")
    InProcess()
    """
    made: Place = parse_entry(value, EXECUTORS, what="executor", example="ray", kinds=(Place,))
    return made
