"""The process of a worker that has a model and some calibration batches, and is led through the model step by step."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fewbit.errors import FewbitError
from fewbit.execution.carried import carried, packed, unpacked
from fewbit.float_bias import FloatBias
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces import Activations, CalibratedPart, DividedRun, Layer
from fewbit.qtensor import QTensor
from fewbit.statistics.partials import Partials, Parts


@dataclass(frozen=True, slots=True)
class Settled:
    """The quantized form of a layer."""

    qtensor: QTensor
    activations: Activations
    bias: IntegerBias | FloatBias | None


@dataclass(frozen=True, slots=True)
class Seen:
    """Layers that are to be quantized next, and which statistics of them a worker holds."""

    layers: tuple[str, ...]
    #: By layer and name the key of a statistic; layers that share an input share it.
    slots: Mapping[tuple[str, str], int]
    #: By key the numbers of the parts that it has.
    held: Mapping[int, tuple[int, ...]]


class BatchWorker:
    """A model and whole parts of the batches."""

    def __init__(self, threads: int) -> None:
        self._device = take_threads(threads)
        self._held: dict[int, Partials] = {}

    def call(self, method: str, *arguments: Any) -> Any:
        """Return what a method says, or the error that fewbit raised in it."""
        try:
            return getattr(self, method)(*arguments)
        except FewbitError as error:
            return error

    def begin(self, given: Any, batches: Sequence[Any], first: int, forms: Mapping[str, Settled]) -> int:
        """Take the model, and batches from number `first` on; return how many stages there are."""
        self._frontend, model, layers, wanted, sequential, part = given
        self._model = self._frontend.place(model, self._device) if self._device != "cpu" else model
        self._layers: dict[str, Layer] = {layer.name: layer for layer in layers}
        self._install(forms)
        own = [carried(batch, self._device) for batch in batches] if self._device != "cpu" else batches
        self._run: DividedRun = self._frontend.calibrate(
            self._model, layers, wanted, own, sequential=sequential, parts=Parts(part, apart=True, first=first)
        )
        self._parts = self._gone_through()
        return len(self._run)

    def row_means(self) -> Mapping[str, Sequence[float]]:
        """Take the gradients of all batches; return their means."""
        for _ in self._run.gradients:
            pass
        return self._run.row_means()

    def weigh(self, means: Sequence[Mapping[str, Sequence[float]]]) -> None:
        """Take the means of all workers."""
        self._run.weigh(means)

    def advance(self, forms: Mapping[str, Settled]) -> Seen | None:
        """Install what was solved and run the batches up to the next layers; `None`: a stage is over."""
        self._install(forms)
        part = next(self._parts, None)
        self._held.clear()
        if part is None:
            return None
        keys: dict[int, int] = {}
        slots = {}
        for layer, statistics in part.statistics.items():
            for name, own in statistics.items():
                key = keys.setdefault(id(own), len(keys))
                self._held[key] = own
                slots[layer, name] = key
        held = {key: tuple(own.kept) for key, own in self._held.items()}
        return Seen(tuple(layer.name for layer in part.layers), slots, held)

    def take(self, key: int, number: int) -> Any:
        """Return a part of a statistic, and let go of it."""
        return packed(self._held[key].kept.pop(number))

    def _gone_through(self) -> Iterator[CalibratedPart | None]:
        for stage in self._run:
            yield from stage
            yield None

    def _install(self, forms: Mapping[str, Settled]) -> None:
        for name, own in forms.items():
            form = unpacked(own, self._device)
            self._frontend.replacement(
                self._model, self._layers[name], form.qtensor, form.activations, form.bias
            ).install()


def take_threads(threads: int) -> str:
    """Let torch have as many threads as in the process that asks, and return the device that is there."""
    import torch

    torch.set_num_threads(threads)
    return "cuda" if torch.cuda.is_available() else "cpu"
