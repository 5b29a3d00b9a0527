"""Solves and calibration batches on the workers of a Ray cluster, or of one that is started here for the run.

Solves are tasks without state, the costliest first, a few in flight at a time; Ray runs one again whose worker died.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import socket
from collections import deque
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from fewbit.errors import ExecutionError, FewbitError, MissingExtraError
from fewbit.execution.batch_worker import take_threads
from fewbit.execution.carried import packed, unpacked
from fewbit.execution.executor import CalibrationTask, Outcome, SolveTask, outcome_of
from fewbit.execution.ray_calibration import DividedCalibration, undivided
from fewbit.interfaces import CalibrationRun
from fewbit.numerics.namespace import is_torch
from fewbit.report.data import installed_versions

#: How often a task is run again whose worker died.
RETRIES = 3
#: Solves in flight for each worker: one that is computed, one whose numbers are on their way.
IN_FLIGHT = 2
#: Seconds that a cluster may take to answer.
_PATIENCE = 5.0
#: What Ray is not to do here: report to its makers, and warn of a default that is to change.
_QUIET = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}


@dataclass(frozen=True, slots=True)
class Ray:
    """Workers of a cluster, each with the threads that torch has here, so that sums come out alike."""

    #: `HOST:PORT` of a cluster, `auto` for the one of this machine; `None`: workers are started here.
    address: str | None = None
    #: How many; `None`: one for each GPU, without those as many as have cores for their threads.
    workers: int | None = None

    def require(self) -> None:
        """Raise for what is missing.

        Raises:
            MissingExtraError: Ray is not installed.
            ExecutionError: no worker is asked for, or nothing answers at the address.

        """
        if importlib.util.find_spec("ray") is None:
            raise MissingExtraError("the executor ray needs Ray, which is not installed; pip install 'fewbit[ray]'")
        if self.workers is not None and self.workers < 1:
            raise ExecutionError(f"{self.workers} workers can do nothing; give 1 at least")
        if self.address in (None, "auto"):
            return
        host, _, port = str(self.address).rpartition(":")
        if not host or "/" in host or not port.isdigit() or not 0 < int(port) < 1 << 16:
            raise ExecutionError(f"{self.address!r} is no address of a Ray cluster; give HOST:PORT, or auto")
        try:
            socket.create_connection((host, int(port)), _PATIENCE).close()
        except OSError as error:
            raise ExecutionError(
                f"nothing answers at {self.address} ({error.strerror or error}); start a cluster with "
                "`ray start --head` and give the address that it prints"
            ) from error

    @contextmanager
    def opened(self) -> Iterator[RayExecutor]:
        """Connect, or start workers, and end that when the context ends.

        Raises:
            ExecutionError: the cluster cannot be used.

        """
        self.require()
        for name, value in _QUIET.items():
            os.environ.setdefault(name, value)
        import ray

        threads, own = _threads(), not ray.is_initialized()
        if own:
            self._start(threads)
        executor = None
        try:
            executor = RayExecutor(*_capacity(self.workers, threads), threads)
            executor.check()
            yield executor
        finally:
            if executor is not None:
                executor.close()
            if own:
                ray.shutdown()

    def _start(self, threads: int) -> None:
        import ray

        variables = {"OMP_NUM_THREADS": str(threads), "NUMBA_NUM_THREADS": str(threads)}
        options: dict[str, Any] = {"address": self.address}
        if self.address is None:
            workers = self.workers or max(1, (os.cpu_count() or 1) // threads)
            options = {"address": "local", "num_cpus": workers * threads, "include_dashboard": False}
        log = logging.getLogger("ray")
        level = log.level
        log.setLevel(logging.ERROR)
        try:
            ray.init(**options, log_to_driver=False, configure_logging=False, runtime_env={"env_vars": variables})
        except (ConnectionError, ValueError, RuntimeError) as error:
            ray.shutdown()
            raise ExecutionError(f"Ray could not be started or reached: {str(error).splitlines()[0]}") from error
        finally:
            log.setLevel(level)


@dataclass(slots=True)
class RayExecutor:
    """The workers of a cluster that this process is connected to."""

    workers: int
    #: Whether each has a GPU.
    gpus: bool
    #: Threads of each.
    threads: int
    notes: list[str] = field(default_factory=list)
    _calibrations: list[DividedCalibration] = field(default_factory=list)

    @property
    def at_once(self) -> int:
        """As many solves as may be in flight."""
        return IN_FLIGHT * self.workers

    def check(self) -> None:
        """Raise `ExecutionError` where workers run other versions: they would compute other bits."""
        import ray

        here = installed_versions()
        for there in ray.get([self._remote(installed_versions).remote() for _ in range(self.workers)]):
            for name in {*here, *there}:
                if here.get(name) != there.get(name):
                    raise ExecutionError(
                        f"a worker has {name} {there.get(name, 'not installed')} and this process "
                        f"{here.get(name, 'not installed')}; install the same versions everywhere"
                    )

    def solve(self, tasks: Sequence[SolveTask]) -> Generator[Outcome]:
        """Yield the tasks solved, in their order; no more than `at_once` of them are in the object store.

        Raises:
            ExecutionError: the worker of a task died again and again.

        """
        import ray

        waiting = deque(sorted(range(len(tasks)), key=lambda place: -tasks[place].cost))
        given = _Given(tasks)
        running: dict[Any, int] = {}
        done: dict[int, Outcome] = {}
        devices: dict[int, str] = {}
        for place, _ in enumerate(tasks):
            while place not in done:
                while waiting and len(running) < self.at_once:
                    new = waiting.popleft()
                    reference, devices[new] = self._begin(tasks[new], given)
                    running[reference] = new
                ready, _ = ray.wait(list(running), num_returns=1)
                found = running.pop(ready[0])
                # Codes wait for their turn in this process: the object store holds what is in flight.
                done[found] = unpacked(_taken(ready[0], tasks[found]), devices.pop(found))
                given.release(tasks[found])
            yield done.pop(place)

    def calibrate(self, task: CalibrationTask) -> CalibrationRun:
        """Return a calibration with the batches divided among the workers, or one here where that cannot be."""
        why = undivided(task)
        if why:
            self.notes.append(f"calibration ran in one process, since {why}; the workers solved layers")
            return task.whole()
        made = DividedCalibration(task, self.workers, self.threads, gpus=self.gpus)
        self._calibrations.append(made)
        return made

    def close(self) -> None:
        """End the workers that hold batches."""
        for calibration in self._calibrations:
            calibration.close()

    def __str__(self) -> str:
        kind = "GPU" if self.gpus else "CPU"
        return f"ray, {self.workers} {kind} worker{'s' if self.workers > 1 else ''} of {self.threads} threads"

    def _begin(self, task: SolveTask, given: _Given) -> tuple[Any, str]:
        weight, scheme = task.read()
        device = str(weight.device) if is_torch(weight) else "cpu"
        statistics = given.reference(task)
        return self._remote(_solved).remote(self.threads, task.algorithm, packed(weight), statistics, scheme), device

    def _remote(self, function: Any) -> Any:
        import ray

        return ray.remote(function).options(
            # The process that holds batches has the other half of a GPU; the two are never busy together.
            num_cpus=self.threads, num_gpus=0.5 if self.gpus else 0, max_retries=RETRIES, scheduling_strategy="SPREAD",
        )  # fmt: skip


class _Given:
    """Statistics in the object store: once for all tasks that share them, and as long as one of them is not done."""

    def __init__(self, tasks: Sequence[SolveTask]) -> None:
        self._users: dict[tuple[int, ...], int] = {}
        for task in tasks:
            key = _key(task)
            self._users[key] = self._users.get(key, 0) + 1
        self._references: dict[tuple[int, ...], Any] = {}

    def reference(self, task: SolveTask) -> Any:
        """Return the reference of what a task is to know of its inputs."""
        import ray

        key = _key(task)
        if key not in self._references:
            self._references[key] = ray.put(packed(dict(task.statistics)))
        return self._references[key]

    def release(self, task: SolveTask) -> None:
        """Take note that a task is done."""
        key = _key(task)
        self._users[key] -= 1
        if not self._users[key]:
            del self._references[key]


def _key(task: SolveTask) -> tuple[int, ...]:
    return tuple(id(own) for own in task.statistics.values())


def _solved(
    threads: int, algorithm: Any, weight: Any, statistics: Mapping[str, Any], scheme: Any
) -> Outcome | FewbitError:
    """Solve a layer in the process of a worker; an error that fewbit raises is handed back as a value."""
    device = take_threads(threads)
    try:
        outcome = outcome_of(algorithm, unpacked(weight, device), unpacked(statistics, device), scheme)
    except FewbitError as error:
        return error
    found: Outcome = packed(outcome)
    return found


def _taken(reference: Any, task: SolveTask) -> Outcome:
    import ray

    try:
        found = ray.get(reference)
    except ray.exceptions.WorkerCrashedError as error:
        raise ExecutionError(
            f"{task.name}: the worker that solved it died {RETRIES + 1} times; it may lack memory, so give more of "
            "it to each worker, or use fewer"
        ) from error
    if isinstance(found, FewbitError):
        raise task.failed(found) from found
    outcome: Outcome = found
    return outcome


def _threads() -> int:
    import torch

    return torch.get_num_threads()


def _capacity(workers: int | None, threads: int) -> tuple[int, bool]:
    """Return how many workers there are to be, and whether each has a GPU."""
    import ray

    there = ray.cluster_resources()
    gpus = int(there.get("GPU", 0))
    largest = max((node["Resources"].get("CPU", 0) for node in ray.nodes() if node["Alive"]), default=0)
    if largest < threads:
        raise ExecutionError(
            f"a worker needs {threads} cores, as many as torch has threads here, and no machine of the cluster has "
            f"more than {largest:g}; set OMP_NUM_THREADS to less"
        )
    room = gpus or int(there.get("CPU", 0)) // threads
    return min(workers or room, room) or 1, gpus > 0
