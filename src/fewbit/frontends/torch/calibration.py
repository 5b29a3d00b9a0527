"""Run calibration data through a model, one block at a time, and gather statistics of what its layers get.

Each block runs on what the already quantized blocks before it put out. Layers that get the same tensor share one
statistic. In true-sequential order the layers of a block come in parts, each measured behind the quantized ones before:
the runs of the block wait at each part and go on behind it; what cannot wait is run anew for every part.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor, nn

from fewbit.errors import CalibrationError
from fewbit.frontends.torch.block_inputs import BlockInputs, walk_blocks
from fewbit.frontends.torch.blocks import Partition, find_blocks
from fewbit.frontends.torch.calls import Call, run_batch
from fewbit.frontends.torch.float_inputs import FloatInputs
from fewbit.frontends.torch.held_weights import HeldWeights
from fewbit.frontends.torch.input_watch import InputWatch
from fewbit.frontends.torch.link_scope import LinkScope
from fewbit.frontends.torch.loss_gradient import LossGradient
from fewbit.frontends.torch.reconstruction import block_part, model_part
from fewbit.frontends.torch.resident_memory import give_back, trim
from fewbit.frontends.torch.token_weights import GradientRun, TokenWeights, means_over
from fewbit.frontends.torch.units import convolves, copied_model, with_units
from fewbit.interfaces import CalibratedPart, Layer
from fewbit.samples.batches import Mapped
from fewbit.statistics import GUIDED, PAIRED
from fewbit.statistics.partials import Parts


class CalibrationRun:
    """The stages of a calibration: blocks in the order of the model, then what lies outside of them."""

    def __init__(  # noqa: PLR0913  # all that is asked of a run
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        wanted: Mapping[str, Sequence[str]],
        batches: Sequence[Any],
        *,
        sequential: bool = False,
        prepare: Callable[[LinkScope], None] | None = None,
        trained: Collection[str] = (),
        parts: Parts | None = None,
    ) -> None:
        """Prepare; `wanted` names the statistics of each layer that is to be quantized, `sequential` cuts blocks up.

        `prepare` gets each block before it is measured, or the model if it has none. The `trained` layers come again at
        the end of their block, all together. Statistics are summed in `parts`.
        """
        self._parts_of = parts or Parts()
        #: Of gradients over all batches, where others have some of them.
        self._means: Mapping[str, float] | None = None
        self._model, self._wanted, self._batches, self._sequential = model, wanted, batches, sequential
        self._prepare, self._trained = prepare, trained
        self._layers, found = layers, find_blocks(model, layers)
        #: Those that transforms see; units are there for training, and for what they get in the float model.
        self._repeated = {block.name for block in found.blocks}
        paired = any(set(PAIRED) & set(names) for names in wanted.values())
        self._units = (bool(trained) or paired) and convolves(layers) and bool(batches)
        self._partition: Partition = with_units(model, found, batches[0]) if self._units else found
        self._weights, self._loss = TokenWeights(), LossGradient.of(model, layers)
        guided = {name for name, names in wanted.items() if set(GUIDED) & set(names)}
        #: What is to be gone through first, a step a batch: what the rows of inputs count in the float model.
        first = self._parts_of.first
        self.gradients = (
            GradientRun(self._loss, layers, batches, guided, blocks=self._with_any(guided & set(trained)), first=first)
            if guided
            else ()
        )

    def __len__(self) -> int:
        return len(self._partition.blocks) + 1

    def _with_any(self, names: Collection[str]) -> list[str]:
        """Return the blocks that have any of the layers called `names`."""
        return [block.name for block in self._partition.blocks if any(layer.name in names for layer in block.layers)]

    def __iter__(self) -> Iterator[Iterator[CalibratedPart]]:
        """Yield for each stage its parts; quantize and install the layers of a part before asking for the next."""
        blocks = {block.name: block for block in self._partition.blocks}
        left = {block.name for block in blocks.values() if any(layer.name in self._wanted for layer in block.layers)}
        known: dict[Any, Any] = {}
        self._weights = self._token_weights()
        if self._prepare and not self._repeated:
            self._prepare(LinkScope(self._model, "", self._layers, self._whole_runs(self._layers)))
        floats = copied_model(self._model) if self._units else None
        for step in self._walk(list(blocks), floats) if left else ():
            own = [layer for layer in blocks[step.name].layers if layer.name in self._wanted]
            left.discard(step.name)
            weights = self._pages(step)
            if self._prepare and own and step.name in self._repeated:
                layers = blocks[step.name].layers
                own_runs, repeatable = _runs_of(step), step.link.replayable
                self._prepare(LinkScope(self._model, step.name, layers, own_runs, repeatable=repeatable, known=known))
            self._require_divisible(own, step)
            with HeldWeights(partial(getattr, step, "module")) as held, step:
                yield self._block_parts(own, step, held, self._floats(own, step))
                if left:  # else no one asks for the outputs
                    held.renew()
                    step.finish()
            # What one block leaves behind must not add up over all of them.
            give_back(weights)
            trim()
            if not left:
                break
        outside = [layer for layer in self._partition.outside if layer.name in self._wanted]
        yield self._outside_parts(outside, self._whole_runs(outside))

    def _token_weights(self) -> TokenWeights:
        """Return what the rows of inputs count, once the gradients were gone through."""
        if not self.gradients:
            return TokenWeights()
        return self.gradients.weights if self._means is None else self.gradients.weighed(self._means)

    def row_means(self) -> Mapping[str, Sequence[float]]:
        """Return what the gradients say in the mean over each batch, for `weigh` of all that have batches."""
        return self.gradients.means if self.gradients else {}

    def weigh(self, means: Sequence[Mapping[str, Sequence[float]]]) -> None:
        """Take the means that all have, in the order of the samples."""
        self._means = means_over(means)

    def _require_divisible(self, layers: list[Layer], step: BlockInputs) -> None:
        """Raise `CalibrationError` where parts that are kept apart would not be those of a run that has all batches."""
        if self._parts_of.apart and layers and not (step.link.replayable and step.number == len(self._batches)):
            raise CalibrationError(
                f"{step.name}: not every batch calls it once, or it cannot be run on its own, so that its "
                "calibration cannot be divided among workers; use the executor in-process"
            )

    def _watch(self, layers: Sequence[Layer], floats: Mapping[str, Sequence[Tensor]] | None = None) -> InputWatch:
        return InputWatch(self._model, layers, self._wanted, floats or {}, self._weights, self._parts_of)

    def _walk(self, names: Sequence[str], floats: nn.Module | None) -> Iterator[BlockInputs]:
        """Yield the blocks in the order of their calls, each with its inputs."""
        return walk_blocks(self._model, names, self._batches, floats)

    def _pages(self, step: BlockInputs) -> list[Any]:
        """Return the tensors of a block whose pages are given back behind it."""
        return list(step.module.parameters())

    def _whole_runs(self, layers: Sequence[Layer]) -> Sequence[Callable[[], Any]]:
        """Return a way to run the model on each batch, for the inputs of `layers`."""
        scores = any(layer.kind == "head" for layer in layers)
        return Mapped(lambda batch: partial(run_batch, self._model, batch, every_score=scores), self._batches)

    def _outside_parts(self, layers: list[Layer], runs: Sequence[Callable[[], Any]]) -> Iterator[CalibratedPart]:
        """Yield the parts of layers outside of blocks, and those that are trained together."""
        trained = tuple(layer for layer in layers if layer.name in self._trained)
        together = model_part(trained, self._loss, self._batches) if trained else None
        yield from self._parts(layers, runs)
        if together:
            yield together

    def _floats(self, layers: list[Layer], step: BlockInputs) -> Mapping[str, Sequence[Tensor]]:
        """Run the float block, where someone asks what it does; return the inputs of layers that are to be compared."""
        paired = {name for name, wanted in self._wanted.items() if set(PAIRED) & set(wanted)}
        # Behind quantized layers an expert gets other tokens, with no float ones to go with them.
        own = {layer.name for layer in layers if not layer.expert} & paired
        if paired or self._trained:
            with FloatInputs(step.unchanged, own) as inputs:
                step.keep_float_outputs()
            return inputs.by_layer(len(step.calls))
        return {}

    def _block_parts(
        self, layers: list[Layer], step: BlockInputs, held: HeldWeights, floats: Mapping[str, Sequence[Tensor]]
    ) -> Iterator[CalibratedPart]:
        """Yield the parts of a block, and its layers that are trained together."""
        trained = tuple(layer for layer in layers if layer.name in self._trained)
        calls = [call.copy() for call in step.calls] if trained else []
        yield from self._measured_parts(layers, step, held, floats)
        if trained:
            step.rewind(calls)
            held.renew()
            yield block_part(trained, step, self._loss, self._batches, self._weights.of_block(step.name))

    def _measured_parts(
        self, layers: list[Layer], step: BlockInputs, held: HeldWeights, floats: Mapping[str, Sequence[Tensor]]
    ) -> Iterator[CalibratedPart]:
        """Yield the parts of a block; in sequential order its runs wait where they can."""
        measured, rest = self._split(layers)
        groups = self._groups(measured, step) if self._sequential and measured else None
        if groups is None:
            yield from self._parts(layers, _runs_of(step))
            return
        if rest:
            yield CalibratedPart(tuple(rest), {})
        reached = {layer.name for group in groups for layer in group}
        if missed := tuple(layer for layer in measured if layer.name not in reached):
            yield CalibratedPart(missed, self._watch(missed).unreached())
        paused = step.pause([[layer.name for layer in group] for group in groups])
        watch = self._watch(measured, floats)
        for group in groups:
            held.renew()
            yield CalibratedPart(group, watch.shared(group, paused.reach(group[0].name)))

    def _groups(self, layers: list[Layer], step: BlockInputs) -> list[tuple[Layer, ...]] | None:
        """Return the layers of a block by their inputs, in the order of the calls; `None` where runs cannot wait."""
        if not (step.link.replayable and step.calls):
            return None
        watch = InputWatch(self._model, layers, self._wanted)
        groups = watch.groups(_runs_of(step))
        return None if watch.repeats else groups

    def _parts(self, layers: list[Layer], runs: Sequence[Callable[[], Any]]) -> Iterator[CalibratedPart]:
        """Yield the parts of layers whose inputs are seen in `runs`, which can be repeated."""
        measured, rest = self._split(layers)
        if not measured:
            yield CalibratedPart(tuple(layers), {})
            return
        watch = self._watch(measured)
        if not self._sequential:
            yield CalibratedPart(tuple(layers), watch.gather(runs))
            return
        if rest:
            yield CalibratedPart(tuple(rest), {})
        groups = watch.groups(runs)
        for group in [tuple(measured)] if groups is None else groups:
            yield CalibratedPart(group, self._watch(group).gather(runs))
        if missed := watch.unreached():
            yield CalibratedPart(tuple(layer for layer in measured if layer.name in missed), missed)

    def _split(self, layers: list[Layer]) -> tuple[list[Layer], list[Layer]]:
        """Return the layers whose inputs are to be measured, and the others."""
        watch = InputWatch(self._model, layers, self._wanted)
        measured = [layer for layer in layers if watch.names(layer)]
        return measured, [layer for layer in layers if layer not in measured]


def _runs_of(step: BlockInputs) -> list[Callable[[], Any]]:
    """Return a way to run the block on each of its calls."""
    if not step.link.replayable:
        return [lambda: list(step.outputs())]
    return [partial(_run_copy, call, step) for call in step.calls]


def _run_copy(call: Call, step: BlockInputs) -> Any:
    return call.copy().run(step.module)
