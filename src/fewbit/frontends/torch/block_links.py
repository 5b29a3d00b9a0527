"""How each block of a model gets its inputs, found by watching float forwards and verified on them.

Chained: call = a call of an earlier block with parts of the previous block's output put in, equal to the bit; and the
previous block, run again on its own call, gives that output again to float rounding. All else is captured anew.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from fewbit.frontends.torch.calls import (
    Call,
    Item,
    Slot,
    copied,
    hidden,
    holds_tensor,
    items,
    run_batch,
    same,
    shapes,
    size,
)
from fewbit.frontends.torch.module_chain import chained, modules_in
from fewbit.frontends.torch.resident_memory import read_by_turns

#: Roundings by which a repeated block may differ: some CUDA kernels add in another order each time.
_TOLERANCE = 8.0


@dataclass(frozen=True, slots=True)
class BlockLink:
    """Where the inputs of one block come from."""

    name: str
    #: How often the model calls it for a batch.
    calls: int = 0
    #: Whether it gave the same output again when run on its own; without that only the model can run it.
    replayable: bool = False
    #: The block that the model called just before.
    previous: str | None = None
    #: For a chained block, the earlier block whose other arguments it shares.
    base: str | None = None
    #: For a chained block, which parts of the previous block's output are which of its arguments.
    slots: Mapping[Slot, Item] = field(default_factory=dict)

    @property
    def chained(self) -> bool:
        """Whether the previous block's outputs are all that its inputs need."""
        return self.base is not None

    def captured(self) -> BlockLink:
        """Return the link of the same block with its inputs captured."""
        return replace(self, base=None, slots={})


def trace_blocks(model: nn.Module, names: Sequence[str], batches: Sequence[Any]) -> tuple[BlockLink, ...]:
    """Return the links of the blocks called `names`, in the order in which `model` calls them.

    The model must be float still: the links say how it is wired. They are found on the largest batch, where sliding
    and full attention differ if they ever do, and confirmed on one batch of each other shape.
    """
    known: dict[str, BlockLink] = {}
    for batch in _of_each_shape(batches):
        trace = _Trace(known)
        with ExitStack() as hooks:
            for name in names:
                modules = modules_in(model, name)
                enter, leave = trace.enter(name), trace.leave(name, chained(model, name))
                hooks.callback(modules[0].register_forward_pre_hook(enter, with_kwargs=True, prepend=True).remove)
                hooks.callback(modules[-1].register_forward_hook(leave).remove)
            hooks.enter_context(read_by_turns([module for name in names for module in modules_in(model, name)]))
            run_batch(model, batch)
        # A block that this batch does not reach cannot be chained: it would be run for this batch too.
        known = {name: link.captured() for name, link in known.items()} | trace.links
    several = {name for name, link in known.items() if link.calls > 1}
    links = (link.captured() if several & {link.name, link.base, link.previous} else link for link in known.values())
    return (*links, *(BlockLink(name) for name in names if name not in known))


def _of_each_shape(batches: Sequence[Any]) -> Iterator[Any]:
    """Yield the first batch of each shape, the largest first; no more than one is held."""
    first: dict[Any, tuple[int, int]] = {}
    for place, batch in enumerate(batches):
        first.setdefault(shapes(batch), (size(batch), place))
    for _, place in sorted(first.values(), key=lambda own: own[0], reverse=True):
        yield batches[place]


class _Trace:
    """Listens to the blocks of one forward; holds one output, and the calls that were not predicted.

    Everything is held as a copy: code between two blocks may write into the tensors that it hands on.
    """

    def __init__(self, known: Mapping[str, BlockLink]) -> None:
        #: What earlier forwards found; here it is only confirmed.
        self._known = known
        self.links: dict[str, BlockLink] = {}
        self._last: str | None = None
        self._outputs: dict[Item, Any] = {}
        self._bases: dict[str, Call] = {}
        self._call = Call((), {})
        self._repeating = False

    def enter(self, name: str) -> Any:
        """Return the hook that sees what the block called `name` is given."""
        seen = 0

        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
            nonlocal seen
            if self._repeating:
                return
            seen += 1
            self._call = Call(args, kwargs).without_caches().copy()
            link = self.links[name] if name in self.links else self._link(name)
            self.links[name] = replace(link, calls=max(seen, link.calls))

        return hook

    def leave(self, name: str, block: nn.Module) -> Any:
        """Return the hook that sees what the `block` called `name` gives."""

        def hook(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
            if self._repeating:
                return
            again = output if name in self._known else self._again(block)
            state = hidden(output)
            if state is None or not same(state, hidden(again), _TOLERANCE):
                self.links[name] = replace(self.links[name], replayable=False)
            self._last = name
            self._outputs = {
                which: copied(value)
                for which, value in items(output).items()
                if holds_tensor(value) and same(value, items(again).get(which), _TOLERANCE)
            }

        return hook

    def _link(self, name: str) -> BlockLink:
        known = self._known.get(name)
        link = known or BlockLink(name, replayable=True, previous=self._last, slots=self._found_slots())
        slots = link.slots if link.previous == self._last else {}
        parts = {slot: self._outputs.get(which) for slot, which in slots.items()}
        for base in (known.base,) if known else tuple(self._bases):
            call = self._bases.get(base or "")
            if parts and call and same(call.replaced(parts).arguments(), self._call.arguments()):
                return replace(link, base=base)
        self._bases[name] = self._call
        return link.captured()

    def _found_slots(self) -> dict[Slot, Item]:
        slots: dict[Slot, Item] = {}
        for slot, value in self._call.arguments().items():
            sources = [which for which, output in self._outputs.items() if same(value, output)]
            slots |= {slot: sources[0]} if sources else {}
        return slots

    def _again(self, module: nn.Module) -> Any:
        """Return the output of a second call on the same inputs, or `None` where there can be none."""
        self._repeating = True
        try:
            return self._call.copy().run(module)
        except Exception:  # a module may refuse in any way to be called out of turn
            return None
        finally:
            self._repeating = False
