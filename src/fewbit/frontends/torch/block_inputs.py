"""Walk through the blocks of a model, each on the inputs that the model with its earlier blocks changed gives it.

inputs[k + 1] = inputs[base] with outputs[k] in its slots where the trace says so, else the model run up to block k + 1.
What is in memory: the inputs of one block for all batches, and what its successors share, such as masks. On demand the
inputs that the unchanged blocks before would have given go along, and what the unchanged block makes of them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from torch import nn

from fewbit.errors import RecipeError
from fewbit.frontends.torch.block_links import BlockLink, trace_blocks
from fewbit.frontends.torch.calls import Call, items, run_batch
from fewbit.frontends.torch.module_chain import chained, modules_in
from fewbit.frontends.torch.paused_runs import PausedRuns
from fewbit.frontends.torch.repeated_runs import RepeatedRuns
from fewbit.frontends.torch.resident_memory import give_back


class BlockInputs:
    """One block and the calls that it gets; both are good until the walk's next step."""

    def __init__(
        self,
        model: nn.Module,
        link: BlockLink,
        batches: Sequence[Any],
        calls: list[Call],
        *,
        unchanged: list[Call] | None = None,
        feeds: bool = False,
        floats: nn.Module | None = None,
    ) -> None:
        self.link = link
        #: What the block is called with: a call for each batch, or more where the model calls it several times.
        self.calls = calls
        #: How many calls there were at first.
        self.number = len(calls)
        self._model = model
        self._batches = batches
        #: Whether the next block's inputs are made of this one's outputs.
        self._feeds = feeds
        self._paused: PausedRuns | None = None
        self._finished: list[Any] = []
        #: Whether there is nothing quantized before it, or what it would get without that is known.
        self.alongside = unchanged is not None or not link.previous or floats is not None
        #: A model that stays unchanged, where the calls do not tell what unchanged blocks would have given.
        self._floats = floats
        #: What the block would be called with behind unchanged ones; `None`: the same.
        self._unchanged = unchanged
        #: What it makes of that as long as it is unchanged itself; empty where no one asked.
        self.float_outputs: list[Any] = []

    @property
    def name(self) -> str:
        """Dotted path of the block, or of several modules that are called one after the other."""
        return self.link.name

    @property
    def chained(self) -> bool:
        """Whether the calls were made from the previous block's outputs; else the model was run up to here."""
        return self.link.chained

    @property
    def module(self) -> nn.Module:
        """The block as it now is."""
        return chained(self._model, self.name)

    @property
    def unchanged(self) -> nn.Module:
        """The model in which `keep_float_outputs` runs the block."""
        return self._floats if self._floats is not None and self.link.replayable else self._model

    def keep_float_outputs(self) -> None:
        """Run the block, still unchanged, on what unchanged blocks before it would have given; if it can be run."""
        if self._floats is not None and self.link.replayable:
            outputs = (listen(self._floats, self.link, batch, leaving=True) for batch in self._batches)
            self.float_outputs = [own for found in outputs for own in found]
            return
        unchanged = self.calls if self._unchanged is None else self._unchanged
        self.float_outputs = [call.copy().run(self.module) for call in unchanged if self.link.replayable]
        self._unchanged = None

    def rewind(self, calls: list[Call]) -> None:
        """Abandon what is paused, and have the block called with `calls` from now on."""
        if self._paused:
            self._paused.close()
        self._paused, self.calls = None, calls

    def pause(self, groups: Sequence[Sequence[str]]) -> PausedRuns | RepeatedRuns:
        """Return runs of the calls that wait at the layers of `groups`; the calls are used up."""
        calls, self.calls = self.calls, []
        module = self.module
        self._paused = PausedRuns(self._model, groups, [partial(call.run, module) for call in calls])
        return self._paused

    def finish(self) -> None:
        """Run the block as it now is, or let its paused runs end, where the next block asks for that."""
        if self._feeds:
            self._finished = list(self.last_outputs())

    def last_outputs(self) -> Iterator[Any]:
        """Run the block as it now is, or let its paused runs end; every call and output is let go of."""
        while self._finished:
            yield self._finished.pop(0)
        if self._paused:
            yield from self._paused.outputs()
        while self.calls:
            yield self.calls.pop(0).run(self.module)

    def __enter__(self) -> BlockInputs:
        return self

    def __exit__(self, *_: object) -> None:
        if self._paused:
            self._paused.close()

    def outputs(self) -> Iterator[Any]:
        """Run the block as it now is on each call in turn; hooks inside it see every input once.

        A block that cannot be run on its own is run by the model.
        """
        if self.link.replayable:
            for call in self.calls:
                yield call.copy().run(self.module)
            return
        for batch in self._batches if self.link.calls else ():
            yield from listen(self._model, self.link, batch, leaving=True)


def walk_blocks(
    model: nn.Module, names: Sequence[str], batches: Sequence[Any], floats: nn.Module | None = None
) -> Iterator[BlockInputs]:
    """Yield the blocks called `names` in the order in which `model` calls them, each with its inputs.

    `floats` is a copy that stays as it is, for what blocks put out behind unchanged ones where no link tells.

    Change a block, its layers replaced or their weights written, before asking for the next one: that one's inputs
    come from the changed block. Start with the float model; a block that no traced batch reaches has no calls.

    Raises:
        RecipeError: no batch.

    """
    if not batches:
        raise RecipeError("no calibration batch to run the blocks on; give one at least")
    links = trace_blocks(model, names, batches)
    shared: dict[str, list[Call]] = {}
    current = BlockInputs(model, BlockLink(""), batches, [])
    for index, link in enumerate(links):
        base = shared.get(link.base or "", [])
        # A batch that takes another way, past a block, breaks the chain for all.
        whole = link.previous == current.name and len(base) == current.number == len(batches)
        feeds = any(later.chained and later.previous == link.name for later in links[index + 1 : index + 2])
        if link.chained and whole:
            unchanged = _replaced(base, link, current.float_outputs) if current.float_outputs else None
            calls = _replaced(base, link, current.last_outputs())
            current = BlockInputs(model, link, batches, calls, unchanged=unchanged, feeds=feeds)
        else:
            current.calls.clear()
            reached = batches if link.calls else ()
            calls = [call for batch in reached for call in listen(model, link, batch, leaving=False)]
            shared[link.name] = for_followers(calls, link, links)
            beside = floats if link.previous and link.calls == 1 else None
            current = BlockInputs(model, link.captured(), batches, calls, feeds=feeds, floats=beside)
            give_back(model.parameters())  # the trace and the capture have read more than one block
        for name in shared.keys() - {later.base for later in links[index + 1 :]}:
            del shared[name]
        yield current


def _replaced(base: list[Call], link: BlockLink, outputs: Iterable[Any]) -> list[Call]:
    """Return the calls of a block whose previous one gave `outputs`."""
    calls = []
    for known, output in zip(base, outputs, strict=True):
        parts = items(output)
        calls.append(known.replaced({slot: parts[which] for slot, which in link.slots.items()}))
    return calls


def for_followers(calls: list[Call], link: BlockLink, links: Sequence[BlockLink]) -> list[Call]:
    """Return what the blocks that share the other arguments of these calls need of them."""
    replaced = [set(later.slots) for later in links if later.base == link.name]
    if not replaced:
        return []
    own = dict.fromkeys(set.intersection(*replaced))
    return [call.replaced(own) for call in calls]


def listen(model: nn.Module, link: BlockLink, batch: Any, *, leaving: bool) -> list[Any]:
    """Return the calls of a block for one batch, or its outputs; the model stops after the only one."""
    seen: list[Any] = []

    def note(value: Any) -> None:
        seen.append(value)
        if link.calls == 1:
            raise _ReachedError

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
        call = Call(args, kwargs).without_caches()
        note(call if link.calls == 1 else call.copy())  # what runs on may write into its inputs

    def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
        note(output)

    modules = modules_in(model, link.name)
    hook = (
        modules[-1].register_forward_hook(leave)
        if leaving
        else modules[0].register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
    )
    try:
        run_batch(model, batch)
    except _ReachedError:
        pass
    finally:
        hook.remove()
    return seen


class _ReachedError(BaseException):
    """Stops a forward early; no `except Exception` inside a model catches it."""
