"""A calibration of a model that is in memory one block at a time; what the next block gets lies in files.

It begins with the model's blocks traced and the first one's calls captured, or where an earlier run has ended. Every
block after the first has to follow from the one before it: there is no going back to blocks that were let go of.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, Self

import numpy as np
from torch import Tensor, nn

from fewbit.errors import NotYetError
from fewbit.frontends.torch.block_inputs import BlockInputs, for_followers, listen
from fewbit.frontends.torch.block_links import BlockLink, trace_blocks
from fewbit.frontends.torch.calibration import CalibrationRun
from fewbit.frontends.torch.calls import Call, items
from fewbit.frontends.torch.paused_runs import PausedRuns
from fewbit.frontends.torch.repeated_runs import RepeatedRuns
from fewbit.frontends.torch.residence import Residence
from fewbit.frontends.torch.stored import sharing
from fewbit.frontends.torch.stored_calls import StoredCall, as_array, to_table
from fewbit.frontends.torch.token_weights import TokenWeights
from fewbit.interfaces import Layer
from fewbit.raw_arrays import NewRawArrays, RawArrays

#: Makes a new file for arrays.
NewFile = Callable[[str], NewRawArrays]
#: Stores what the next block takes of each output.
Store = Callable[[Iterator[Sequence[Tensor]]], RawArrays]
_REMEDY = "quantize this model in memory, without --memory and --resume"


@dataclass(frozen=True, slots=True)
class Wiring:
    """How the blocks of a model follow from each other, and what all of their calls share."""

    links: tuple[BlockLink, ...]
    #: By batch, what `to_table` made of the first block's call.
    calls: tuple[Any, ...]
    arrays: RawArrays

    def table(self) -> dict[str, Any]:
        """Return what `of_table` makes this of, for JSON."""
        links = [{**asdict(own), "slots": list(own.slots.items())} for own in self.links]
        return {"links": links, "calls": list(self.calls), "arrays": self.arrays.table()}

    @classmethod
    def of_table(cls, table: dict[str, Any], arrays: RawArrays) -> Self:
        """Return the wiring that a table tells of."""
        links = (BlockLink(**{**own, "slots": dict(own["slots"])}) for own in table["links"])
        return cls(tuple(links), tuple(table["calls"]), arrays)


@dataclass(frozen=True, slots=True)
class Position:
    """What a block is to be called with: by batch the arguments that change from block to block, in their order."""

    place: int
    states: RawArrays


@dataclass(frozen=True, slots=True)
class Streaming:
    """What a calibration is streamed with."""

    residence: Residence
    new_file: NewFile
    #: Is told of every block, and of the next one's inputs, once the block needs its numbers no more.
    finished: Callable[[str, Position | None], None]
    sequential: bool = True
    #: Whether the runs of a block wait at its layers, for which all batches are in the block at once.
    waiting: bool = True


class StreamedCalibration(CalibrationRun):
    """The stages of a calibration, with one block at a time in memory."""

    def __init__(
        self,
        model: nn.Module,
        layers: Sequence[Layer],
        wanted: Mapping[str, Sequence[str]],
        batches: Sequence[Any],
        streaming: Streaming,
    ) -> None:
        """Prepare; see `Streaming` for what is beside the model."""
        super().__init__(model, layers, wanted, batches, sequential=streaming.sequential)
        self._residence, self._new_file, self._finished = streaming.residence, streaming.new_file, streaming.finished
        self._waiting = streaming.waiting
        self._known: TokenWeights | None = None
        self.wiring: Wiring | None = None
        self._position: Position | None = None

    def go_on(self, weights: TokenWeights | None, wiring: Wiring | None, position: Position | None) -> None:
        """Begin where an earlier run has ended."""
        self._known, self.wiring, self._position = weights, wiring, position
        if weights is not None:
            self.gradients = ()

    def begin(self) -> tuple[Wiring, Position]:
        """Run the float model to see how its blocks follow from each other, and up to the first block.

        Raises:
            NotYetError: a block whose inputs do not follow from the block before it.

        """
        links = self._links()
        first = links[0]
        calls = [call for batch in self._batches for call in listen(self._model, first, batch, leaving=False)]
        slots = list(links[1].slots) if len(links) > 1 else []
        with self._new_file("shared") as shared:
            followed = for_followers(calls, first, links) or calls
            tables = tuple(to_table((own.args, dict(own.kwargs)), shared.add) for own in followed)
            self.wiring = Wiring(links, tables, shared.close())
        self._position = Position(0, self._stored(0, (_parts(call, slots) for call in calls)))
        return self.wiring, self._position

    def token_weights(self) -> TokenWeights:
        """Return what the rows of inputs count, once the gradients were gone through."""
        return self._token_weights()

    def _token_weights(self) -> TokenWeights:
        return super()._token_weights() if self._known is None else self._known

    def _pages(self, step: BlockInputs) -> list[Any]:  # noqa: ARG002  # none is mapped, and a list would keep them
        return []

    def _walk(self, names: Sequence[str], floats: nn.Module | None) -> Iterator[BlockInputs]:  # noqa: ARG002
        assert self.wiring is not None
        assert self._position is not None
        links, position = self.wiring.links, self._position
        while True:
            link = links[position.place]
            following = links[position.place + 1] if position.place + 1 < len(links) else None
            with self._residence.held(link.name):
                store = partial(self._stored, position.place + 1)
                step = _Step(self._model, link, self._calls(position), following, store)
                step.waiting = self._waiting
                yield step
                # Whoever asks for more is through with it.
                states = step.states
            following_position = None if states is None else Position(position.place + 1, states)
            self._finished(link.name, following_position)
            if following_position is None:
                return
            position = following_position

    def _calls(self, position: Position) -> list[Any]:
        """Return the calls of the block at a position, which are read when they are run."""
        assert self.wiring is not None
        slots = list(self.wiring.links[min(1, len(self.wiring.links) - 1)].slots)
        return [
            StoredCall(
                table,
                self.wiring.arrays,
                {slot: number * len(slots) + place for place, slot in enumerate(slots)},
                position.states,
            )
            for number, table in enumerate(self.wiring.calls)
        ]

    def _stored(self, place: int, states: Iterator[Sequence[Tensor]]) -> RawArrays:
        with self._new_file(f"states-{place:05}") as file:
            for own in states:
                for tensor in own:
                    if not isinstance(tensor, Tensor):
                        raise NotYetError(f"a block hands on a {type(tensor).__name__}, which is not stored; {_REMEDY}")
                    file.add(as_array(tensor))
            return file.close()

    def _links(self) -> tuple[BlockLink, ...]:
        try:
            links = trace_blocks(self._model, [own.name for own in self._partition.blocks], self._batches)
        except (RuntimeError, NotImplementedError) as error:
            if "meta" not in str(error).lower():
                raise
            said = str(error).splitlines()[0]
            raise NotYetError(f"the model uses weights past the modules that have them ({said}); {_REMEDY}") from error
        for place, link in enumerate(links):
            why = _unfollowed(link, links, place)
            if why:
                raise NotYetError(f"{link.name}: {why}, so that the model cannot be streamed; {_REMEDY}")
        return links


class _Step(BlockInputs):
    """A block and its calls; what it puts out goes into a file."""

    def __init__(
        self, model: nn.Module, link: BlockLink, calls: list[Any], following: BlockLink | None, store: Store
    ) -> None:
        super().__init__(model, link, (), calls, feeds=following is not None)
        self._following, self._store = following, store
        self.waiting = True
        self.states: RawArrays | None = None

    def pause(self, groups: Sequence[Sequence[str]]) -> PausedRuns | RepeatedRuns:
        """Return runs that wait at the layers of `groups`, or are made anew for each of these."""
        if self.waiting:
            return super().pause(groups)
        return RepeatedRuns(self._model, self.module, self.calls)

    def finish(self) -> None:
        """Run the block as it now is, or let its paused runs end, and store what the next block takes of that."""
        if self._following is not None:
            slots = self._following.slots
            self.states = self._store([items(out)[which] for which in slots.values()] for out in self.last_outputs())


def stored_weights(weights: TokenWeights, file: NewRawArrays) -> tuple[dict[str, list[int]], RawArrays]:
    """Return by layer the arrays that its weights of rows became."""
    table = {name: [file.add(as_array(rows)) for rows in own] for name, own in weights.by_layer.items()}
    return table, file.close()


def weights_of(table: Mapping[str, Sequence[int]], arrays: RawArrays) -> TokenWeights:
    """Return the weights of rows that `stored_weights` has stored."""
    return TokenWeights({name: [sharing(np.array(arrays[n])) for n in own] for name, own in table.items()})


def _parts(call: Call, slots: Sequence[Any]) -> list[Tensor]:
    arguments = call.arguments()
    return [arguments[slot] for slot in slots]


def _unfollowed(link: BlockLink, links: Sequence[BlockLink], place: int) -> str | None:
    """Return why the calls of a block are not those of the first with the outputs of the one before it put in."""
    if link.calls != 1 or not link.replayable:
        return f"the model calls it {link.calls} times" if link.calls != 1 else "run on its own it gives another output"
    if place == 0:
        return None
    if link.base != links[0].name or link.previous != links[place - 1].name:
        return "what it is called with does not follow from the block before it alone"
    if set(link.slots) != set(links[1].slots):
        return "it takes other outputs of the block before it than the second block does"
    return None
