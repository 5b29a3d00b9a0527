"""Run calibration data through a model, one block at a time, and gather statistics of what its layers get.

Each block runs on what the already quantized blocks before it put out. Layers that get the same tensor share one
statistic. In true-sequential order the layers of a block come in parts, each measured behind the quantized ones before:
the runs of the block wait at each part and go on behind it; what cannot wait is run anew for every part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.catalogue import lookup
from fewbit.errors import CalibrationError, FewbitError
from fewbit.frontends.torch.block_inputs import BlockInputs, walk_blocks
from fewbit.frontends.torch.blocks import Partition, find_blocks
from fewbit.frontends.torch.calls import Call, run_batch
from fewbit.frontends.torch.convolution import Convolution, same_rows
from fewbit.frontends.torch.quantized import QuantizedLayer
from fewbit.frontends.torch.resident_memory import give_back, trim
from fewbit.interfaces import CalibratedPart, Layer
from fewbit.samples.batches import Mapped
from fewbit.statistics import STATISTICS


class CalibrationRun:
    """The stages of a calibration: blocks in the order of the model, then what lies outside of them."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        wanted: Mapping[str, Sequence[str]],
        batches: Sequence[Any],
        *,
        sequential: bool = False,
    ) -> None:
        """Prepare; `wanted` names the statistics of each layer that is to be quantized, `sequential` cuts blocks up."""
        self._model, self._wanted, self._batches, self._sequential = model, wanted, batches, sequential
        self._partition: Partition = find_blocks(model, layers)

    def __len__(self) -> int:
        return len(self._partition.blocks) + 1

    def __iter__(self) -> Iterator[Iterator[CalibratedPart]]:
        """Yield for each stage its parts; quantize and install the layers of a part before asking for the next."""
        blocks = {block.name: block for block in self._partition.blocks}
        left = {block.name for block in blocks.values() if any(layer.name in self._wanted for layer in block.layers)}
        for step in walk_blocks(self._model, list(blocks), self._batches) if left else ():
            own = [layer for layer in blocks[step.name].layers if layer.name in self._wanted]
            left.discard(step.name)
            weights = list(step.module.parameters())
            with _Held(step.module) as held, step:
                yield self._block_parts(own, step, held)
                if left:  # else no one asks for the outputs
                    held.renew()
                    step.finish()
            # What one block leaves behind must not add up over all of them.
            give_back(weights)
            trim()
            if not left:
                break
        outside = [layer for layer in self._partition.outside if layer.name in self._wanted]
        scores = any(layer.kind == "head" for layer in outside)
        runs = Mapped(lambda batch: partial(run_batch, self._model, batch, every_score=scores), self._batches)
        yield self._parts(outside, runs)

    def _block_parts(self, layers: list[Layer], step: BlockInputs, held: _Held) -> Iterator[CalibratedPart]:
        """Yield the parts of a block; in sequential order its runs wait where they can."""
        measured, rest = self._split(layers)
        groups = self._groups(measured, step) if self._sequential and measured else None
        if groups is None:
            yield from self._parts(layers, _runs_of(step))
            return
        if rest:
            yield CalibratedPart(tuple(rest), {})
        paused = step.pause([[layer.name for layer in group] for group in groups])
        watch = _Watch(self._model, measured, self._wanted)
        for group in groups:
            held.renew()
            yield CalibratedPart(group, watch.shared(group, paused.reach(group[0].name)))

    def _groups(self, layers: list[Layer], step: BlockInputs) -> list[tuple[Layer, ...]] | None:
        """Return the layers of a block by their inputs, in the order of the calls; `None` where runs cannot wait."""
        if not (step.link.replayable and step.calls):
            return None
        watch = _Watch(self._model, layers, self._wanted)
        groups = watch.groups(partial(_run_copy, step.calls[0], step.module))
        return groups if sorted(watch.calls) == sorted(layer.name for layer in layers) else None

    def _parts(self, layers: list[Layer], runs: Sequence[Callable[[], Any]]) -> Iterator[CalibratedPart]:
        """Yield the parts of layers whose inputs are seen in `runs`, which can be repeated."""
        measured, rest = self._split(layers)
        if not measured:
            yield CalibratedPart(tuple(layers), {})
            return
        watch = _Watch(self._model, measured, self._wanted)
        if not self._sequential:
            yield CalibratedPart(tuple(layers), watch.gather(runs))
            return
        if rest:
            yield CalibratedPart(tuple(rest), {})
        for group in watch.groups(runs[0]):
            yield CalibratedPart(group, _Watch(self._model, group, self._wanted).gather(runs))

    def _split(self, layers: list[Layer]) -> tuple[list[Layer], list[Layer]]:
        """Return the layers whose inputs are to be measured, and the others."""
        watch = _Watch(self._model, layers, self._wanted)
        measured = [layer for layer in layers if watch.names(layer)]
        return measured, [layer for layer in layers if layer not in measured]


class _Held:
    """The quantized layers of a block dequantized once, while it runs for every batch."""

    def __init__(self, block: nn.Module) -> None:
        self._block = block
        self._layers: list[QuantizedLayer] = []

    def renew(self) -> None:
        """Hold what has been quantized since."""
        new = [part for part in self._block.modules() if isinstance(part, QuantizedLayer) and part not in self._layers]
        for layer in new:
            layer.hold()
        self._layers += new

    def __enter__(self) -> _Held:
        return self

    def __exit__(self, *_: object) -> None:
        for layer in self._layers:
            layer.release()


def _runs_of(step: BlockInputs) -> list[Callable[[], Any]]:
    """Return a way to run the block on each of its calls."""
    if not step.link.replayable:
        return [lambda: list(step.outputs())]
    return [partial(_run_copy, call, step.module) for call in step.calls]


def _run_copy(call: Call, module: nn.Module) -> Any:
    return call.copy().run(module)


@dataclass(slots=True)
class _Watch:
    """Listens to the inputs of some layers."""

    model: nn.Module
    layers: Sequence[Layer]
    wanted: Mapping[str, Sequence[str]]
    #: The layer that keeps the statistic of each; found in the first run.
    leaders: dict[str, str] = field(default_factory=dict)
    #: Layers in the order of their calls in the first run.
    calls: list[str] = field(default_factory=list)
    #: Inputs seen in the run in progress, each with its version and the layer that keeps its statistic.
    current: list[tuple[Tensor, int | None, str]] = field(default_factory=list)

    def gather(self, runs: Sequence[Callable[[], Any]]) -> dict[str, dict[str, Any]]:
        """Return the statistics of each layer over all `runs`; layers that share an input share the objects."""
        kept: dict[tuple[str, str], Any] = {}
        #: Which of the layers with one input feeds a statistic: the first that asks for it.
        feeds: dict[tuple[str, str], str] = {}

        def take(layer: Layer, rows: Tensor) -> None:
            leader = self._leader(layer, rows)
            own = {}
            for name in self.names(layer):
                if feeds.setdefault((leader, name), layer.name) == layer.name:
                    own[name] = kept.setdefault((leader, name), self._statistic(name, layer, rows))
            self._update(layer, own, rows)

        for number, run in enumerate(runs):
            # Once it is known that each layer is called once, a run may stop at the last of them.
            last = self.calls[-1] if number and len(self.calls) == len(self.layers) == len(set(self.calls)) else None
            with self._listening(take, record=number == 0, last=last):
                run()
        return {
            layer.name: {name: kept[self.leaders[layer.name], name] for name in self.names(layer)}
            for layer in self.layers
            if layer.name in self.leaders
        }

    def shared(self, group: Sequence[Layer], inputs: Iterator[Tensor]) -> dict[str, dict[str, Any]]:
        """Return the statistics of layers that all get these inputs."""
        kept: dict[str, Any] = {}
        wanted = {name: layer for layer in reversed(group) for name in self.names(layer)}
        for rows in inputs:
            kept = kept or {name: self._statistic(name, layer, rows) for name, layer in wanted.items()}
            self._update(group[0], kept, rows)
        return {layer.name: {name: kept[name] for name in self.names(layer) if name in kept} for layer in group}

    def groups(self, run: Callable[[], Any]) -> list[tuple[Layer, ...]]:
        """Return the layers in the order of their calls in one run, those that share an input together."""
        with self._listening(lambda layer, rows: self._leader(layer, rows) and None, record=True, last=None):
            run()
        groups: dict[str, dict[str, Layer]] = {}
        known = {layer.name: layer for layer in self.layers}
        for name in self.calls:
            groups.setdefault(self.leaders[name], {})[name] = known[name]
        unseen = tuple(layer for layer in self.layers if layer.name not in self.leaders)
        found = [tuple(group.values()) for group in groups.values()]
        return [*found, unseen] if unseen else found

    def _leader(self, layer: Layer, rows: Tensor) -> str:
        """Return which layer keeps the statistic of `layer`'s input; found in the first run, checked in the others."""
        # What was written into since is another input; a tensor of inference mode cannot tell, and is not shared.
        version = None if rows.is_inference() else rows._version
        same = (
            leader
            for seen, then, leader in self.current
            if seen is rows
            and then == version is not None
            and same_rows(self._module(leader), self._module(layer.name))
        )
        first = next(same, layer.name)
        if self.leaders.setdefault(layer.name, first) != first:
            raise CalibrationError(
                f"{layer.name}: it shares its input with {self.leaders[layer.name]} in one calibration batch and not "
                "in another; give batches that take the same way through the model"
            )
        self.current.append((rows, version, first))
        return first

    def names(self, layer: Layer) -> list[str]:
        """Return the statistics that `layer` is to have and can have."""
        return [name for name in self.wanted[layer.name] if layer.multiplies_rows or not _class(name).of_rows]

    def _statistic(self, name: str, layer: Layer, rows: Tensor) -> Any:
        kind, convolution = _class(name), Convolution.of(self._module(layer.name))
        if convolution and not kind.of_rows:
            return kind.init(convolution.in_channels, rows)
        if layer.groups > 1:
            return kind.of_groups(layer.shape[1], layer.groups, rows)
        return kind.init(layer.shape[1], rows)

    def _module(self, name: str) -> nn.Module:
        return self.model.get_submodule(name)

    def _update(self, layer: Layer, statistics: Mapping[str, Any], inputs: Tensor) -> None:
        """Take in the rows of what `layer` is given: of a convolution a patch for each position."""
        convolution = Convolution.of(self._module(layer.name))
        for name, statistic in statistics.items():
            pieces: Iterable[Tensor] = (inputs,)
            if convolution:
                pieces = convolution.rows(inputs) if statistic.of_rows else (convolution.channels_last(inputs),)
            try:
                for rows in pieces:
                    statistic.update(rows)
            except FewbitError as error:
                raise type(error)(f"{layer.name}: {name}: {error}") from error

    @contextmanager
    def _listening(self, take: Callable[[Layer, Tensor], Any], *, record: bool, last: str | None) -> Iterator[None]:
        def hook(layer: Layer) -> Any:
            @torch.no_grad()
            def enter(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG001
                take(layer, args[0] if args else next(iter(kwargs.values())))
                if record:
                    self.calls.append(layer.name)
                if layer.name == last:
                    raise _EnoughError

            return self._module(layer.name).register_forward_pre_hook(enter, with_kwargs=True)

        handles = [hook(layer) for layer in self.layers]
        try:
            yield
        except _EnoughError:
            pass
        finally:
            self.current.clear()
            for handle in handles:
                handle.remove()


def _class(name: str) -> Any:
    return lookup(STATISTICS, name, what="statistic")


class _EnoughError(BaseException):
    """Stops a run after the last layer that is listened to; no `except Exception` inside a model catches it."""
