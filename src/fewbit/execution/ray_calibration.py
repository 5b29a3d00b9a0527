"""A calibration whose batches are divided among workers, which go through the model in step, some layers at a time.

Each worker has the whole model and whole parts of the batches, in order. What it has seen is fetched part by part and
merged here; what is solved goes to all. A worker that died is replaced by one that is led through the same steps.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from fewbit.errors import CalibrationError, ExecutionError, FewbitError
from fewbit.execution.batch_worker import BatchWorker, Seen, Settled
from fewbit.execution.carried import packed, unpacked
from fewbit.execution.executor import CalibrationTask
from fewbit.interfaces import CalibratedPart
from fewbit.samples.batches import Mapped
from fewbit.statistics import GUIDED

#: How often a worker is replaced.
LIVES = 3
#: Statistics on their way at a time; of a wide layer one has gigabytes.
_ON_THEIR_WAY = 2


def undivided(task: CalibrationTask) -> str | None:
    """Return why the batches of a calibration are not divided among processes, or `None`."""
    if not task.frontend.divides:
        return "the front end of this model does not divide batches"
    if task.prepare is not None:
        return "the recipe rescales or shifts channels by what all batches show"
    if task.trained:
        return "the recipe trains layers of a block together on all batches"
    if any(layer.expert for layer in task.layers if layer.name in task.wanted):
        return "experts are given other tokens by every batch"
    if len(task.batches) <= task.part:
        return f"its {len(task.batches)} batches are one part of {task.part}"
    return None


@dataclass(slots=True)
class _Hand:
    """A worker as it is seen from here."""

    batches: Sequence[Any]
    #: The number of its first batch.
    first: int
    actor: Any = None
    lives: int = LIVES


@dataclass(frozen=True, slots=True)
class _Step:
    """What all workers do, perhaps again: codes are not kept here a second time."""

    method: str
    arguments: Callable[[_Hand], tuple[Any, ...]] = lambda _: ()
    #: Layers whose quantized forms are the last argument.
    names: tuple[str, ...] | None = None


@dataclass(slots=True)
class DividedCalibration:
    """The stages of a calibration on several workers."""

    task: CalibrationTask
    workers: int
    threads: int
    gpus: bool = False
    _hands: list[_Hand] = field(default_factory=list)
    #: What workers were told so far: how to lead a new one to where the others are.
    _history: list[_Step] = field(default_factory=list)
    _stages: int = 0
    #: Layers that the workers have been given in their quantized form.
    _sent: set[str] = field(default_factory=set)
    _model: Any = None

    def __len__(self) -> int:
        self._begin()
        return self._stages

    @property
    def gradients(self) -> Sequence[None]:
        """One step, in which every worker takes the gradients of all its batches; none where nothing asks for them."""
        self._begin()
        return Mapped(lambda _: self._weigh(), (None,)) if self._guided else ()

    @property
    def _guided(self) -> bool:
        return any(set(GUIDED) & set(names) for names in self.task.wanted.values())

    def __iter__(self) -> Iterator[Iterator[CalibratedPart]]:
        """Yield for each stage its parts; quantize and install the layers of a part before asking for the next."""
        self._begin()
        try:
            for _ in range(self._stages):
                yield self._parts()
        finally:
            self.close()

    def close(self) -> None:
        """End the workers and let go of the model."""
        import ray

        for hand in self._hands:
            if hand.actor is not None:
                ray.kill(hand.actor)
        self._hands.clear()
        self._model = None

    def _begin(self) -> None:
        """Start the workers, each with the float model and whole parts of the batches."""
        if self._stages:
            return
        import ray

        task = self.task
        count = -(-len(task.batches) // task.part)
        bounds = [number * count // min(self.workers, count) * task.part for number in range(min(self.workers, count))]
        with task.floating():
            try:
                self._model = ray.put(
                    (task.frontend, task.model, list(task.layers), dict(task.wanted), task.sequential, task.part)
                )
            except Exception as error:  # what pickles a model may raise anything
                raise ExecutionError(
                    f"the model cannot be sent to workers: {str(error).splitlines()[0]:.200}; use the executor "
                    "in-process"
                ) from error
        for start, stop in zip(bounds, [*bounds[1:], len(task.batches)], strict=True):
            self._hands.append(_Hand([task.batches[place] for place in range(start, stop)], start))
        for hand in self._hands:
            self._start(hand)
        begin = _Step("begin", lambda hand: (self._model, hand.batches, hand.first), self._new_names())
        self._stages = self._all(begin)[0]

    def _start(self, hand: _Hand) -> None:
        import ray

        options = {"num_cpus": 0, "num_gpus": 0.5 if self.gpus else 0, "scheduling_strategy": "SPREAD"}
        hand.actor = ray.remote(BatchWorker).options(**options).remote(self.threads)

    def _weigh(self) -> None:
        means = self._all(_Step("row_means"))
        self._all(_Step("weigh", lambda _: (means,)))

    def _parts(self) -> Iterator[CalibratedPart]:
        layers = {layer.name: layer for layer in self.task.layers}
        while True:
            found: list[Seen | None] = self._all(_Step("advance", names=self._new_names()))
            seen = _agreed(found)
            if not seen:
                return
            whole = {key: self._whole(key, seen) for key in dict.fromkeys(seen[0].slots.values())}
            statistics: dict[str, dict[str, Any]] = {name: {} for name, _ in seen[0].slots}
            for (layer, name), key in seen[0].slots.items():
                statistics[layer][name] = whole[key]
            yield CalibratedPart(tuple(layers[name] for name in seen[0].layers), statistics)

    def _whole(self, key: int, seen: Sequence[Seen]) -> Any:
        """Return the statistic of all batches: the parts fetched and merged in the order of the samples."""
        waiting = deque((hand, number) for hand, own in zip(self._hands, seen, strict=True) for number in own.held[key])
        coming: deque[tuple[_Hand, _Step, tuple[Any, Any]]] = deque()
        whole: Any = None
        while waiting or coming:
            while waiting and len(coming) < _ON_THEIR_WAY:
                hand, number = waiting.popleft()
                step = _Step("take", partial(_always, (key, number)))
                coming.append((hand, step, self._asked(hand, step)))
            hand, step, asked = coming.popleft()
            part = unpacked(self._result(hand, asked, step))
            if whole is None:
                whole = part
            else:
                whole.merge(part)
        return whole

    def _all(self, step: _Step) -> list[Any]:
        """Have every worker do something at the same time; return what they say, in the order of the samples."""
        forms = self._forms(step)
        asked = [self._asked(hand, step, forms) for hand in self._hands]
        found = [self._result(hand, own, step) for hand, own in zip(self._hands, asked, strict=True)]
        self._history.append(step)
        return found

    def _asked(self, hand: _Hand, step: _Step, forms: tuple[Any, ...] | None = None) -> tuple[Any, Any]:
        """Ask a worker; return which process that was, and the reference of the answer."""
        forms = self._forms(step) if forms is None else forms
        return hand.actor, hand.actor.call.remote(step.method, *step.arguments(hand), *forms)

    def _forms(self, step: _Step) -> tuple[Any, ...]:
        """Return the reference of the quantized forms that a step hands over, if it does."""
        import ray

        if step.names is None:
            return ()
        solved = {name: self.task.solved[name] for name in step.names}
        forms = {name: Settled(own.replacement.qtensor, own.activations, own.bias) for name, own in solved.items()}
        return (ray.put(packed(forms)),)

    def _result(self, hand: _Hand, asked: tuple[Any, Any], step: _Step) -> Any:
        """Return what a worker says; one that died is replaced and asked again."""
        import ray

        while True:
            try:
                found = ray.get(asked[1])
                break
            except ray.exceptions.RayActorError as error:
                if hand.actor is asked[0]:  # else another answer of the same process was missed already
                    self._replace(hand, error)
                asked = self._asked(hand, step)
        if isinstance(found, FewbitError):
            raise found
        return found

    def _replace(self, hand: _Hand, error: Exception) -> None:
        """Start another worker in the place of one that died, and lead it to where the others are."""
        hand.lives -= 1
        if hand.lives < 0:
            raise ExecutionError(
                f"a worker with {len(hand.batches)} calibration batches died {LIVES + 1} times; it may lack memory, so "
                "give more of it to each worker, or use fewer"
            ) from error
        self._start(hand)
        for past in self._history:
            self._asked(hand, past)

    def _new_names(self) -> tuple[str, ...]:
        names = tuple(name for name in self.task.solved if name not in self._sent)
        self._sent.update(names)
        return names


def _agreed(found: Sequence[Seen | None]) -> Sequence[Seen]:
    """Return what the workers have seen, of the same layers all of them; nothing: the stage is over."""
    seen = [own for own in found if own is not None]
    if seen and (
        len(seen) < len(found) or any((own.layers, own.slots) != (seen[0].layers, seen[0].slots) for own in seen)
    ):
        raise CalibrationError(
            f"{', '.join(seen[0].layers)}: some batches call the layers of a block in another order than others, so "
            "that calibration cannot be divided among workers; use the executor in-process"
        )
    return seen


def _always(value: Any, hand: _Hand) -> Any:  # noqa: ARG001
    return value
