"""Units of a convolutional network outside of its repeated blocks, found by the data flow of one run: to be trained.

A unit begins at a layer, or at a module with layers that is no chain of its parts, such as a residual block. Modules
without layers that take its output as it is, such as norms and activations, belong to it, and what stands between a
block and the layer behind. Source: BRECQ, arXiv 2102.05426.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from fewbit.frontends.torch.blocks import Block, Partition
from fewbit.frontends.torch.calls import run_batch
from fewbit.frontends.torch.module_chain import chain_name, names_in
from fewbit.interfaces import Layer


def convolves(layers: Sequence[Layer]) -> bool:
    """Whether most of the layers are convolutions."""
    return 2 * sum(layer.kind == "conv" for layer in layers) > len(layers)


def copied_model(model: nn.Module) -> nn.Module | None:
    """Return a float model that stays as it is while units of the other are quantized; `None` where that cannot be.

    A unit behind a function, such as `torch.flatten`, is trained for what it puts out there.
    """
    try:
        return copy.deepcopy(model)
    except Exception:  # whatever the parts of someone else's module raise; the report then says what is trained for
        return None


def with_units(model: nn.Module, partition: Partition, batch: Any) -> Partition:
    """Return `partition` with units of the layers outside of its blocks as further blocks.

    What a run on `batch` calls several times, or not at all, stays outside.
    """
    layers = {layer.name: layer for layer in partition.outside}
    chains = _Search(model, list(layers), [block.name for block in partition.blocks]).chains(batch)
    units = [Block(chain, tuple(own for own in partition.outside if _in_chain(own.name, chain))) for chain in chains]
    taken = {layer.name for unit in units for layer in unit.layers}
    return Partition((*partition.blocks, *units), tuple(own for own in partition.outside if own.name not in taken))


@dataclass(slots=True)
class _Visit:
    """One call of a module."""

    name: str
    #: What it is given, if that is one tensor and nothing else.
    given: Tensor | None = None
    #: What it gives, if that is a tensor.
    output: Tensor | None = None
    #: The calls of modules that it makes itself, in order.
    parts: list[_Visit] = field(default_factory=list)

    def is_chain(self) -> bool:
        """Whether it hands what it is given through its parts, and gives what the last of them does."""
        before = self.given
        for part in self.parts:
            if before is None or part.given is not before:
                return False
            before = part.output
        return bool(self.parts) and before is self.output


class _Search:
    """The modules of a model outside of its blocks."""

    def __init__(self, model: nn.Module, layers: Collection[str], blocks: Collection[str]) -> None:
        self._model, self._layers, self._blocks = model, layers, blocks
        #: How often each is called.
        self._calls: Counter[str] = Counter()

    def chains(self, batch: Any) -> list[str]:
        """Return the names of the units, in the order of their calls in a run on `batch`."""
        found: list[list[str]] = []
        tail: list[str] = []  # the last unit; behind a block what stands between that and the next one
        before: Tensor | None = None  # what came out of it
        for visit in self._opened(self._run(batch)):
            follows = before is not None and visit.given is before
            layered = self._holds(visit.name, self._layers)
            if not self._called_once(visit.name):
                before = None
            elif self._holds(visit.name, self._blocks):
                tail, before = [], visit.output
            elif layered:
                between = follows and not any(tail is unit for unit in found)
                tail, before = [*(tail if between else ()), visit.name], visit.output
                found.append(tail)
            elif follows:
                tail.append(visit.name)
                before = visit.output
            else:
                before = None
        return [chain_name(names) for names in found]

    def _run(self, batch: Any) -> _Visit:
        """Run the model, and return its call with those inside of it, blocks left closed."""
        outermost = _Visit("")
        under_way = [outermost]

        def hooked(name: str) -> tuple[Any, Any]:
            def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # noqa: ARG001
                alone = len(args) == 1 and not kwargs and isinstance(args[0], Tensor)
                visit = _Visit(name, args[0] if alone else None)
                self._calls[name] += 1
                under_way[-1].parts.append(visit)
                under_way.append(visit)

            def leave(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:  # noqa: ARG001
                under_way.pop().output = output if isinstance(output, Tensor) else None

            return enter, leave

        with ExitStack() as hooks:
            for name, module in self._model.named_modules():
                if name and not any(name.startswith(f"{block}.") for block in self._blocks):
                    enter, leave = hooked(name)
                    hooks.callback(module.register_forward_pre_hook(enter, with_kwargs=True).remove)
                    hooks.callback(module.register_forward_hook(leave).remove)
            run_batch(self._model, batch)
        return outermost

    def _opened(self, visit: _Visit) -> Iterator[_Visit]:
        """Yield the calls that units are made of: of what is a chain, or holds blocks, those inside of it."""
        for part in visit.parts:
            several = sum(_is_in(name, part.name) for name in self._layers) > 1
            around = part.name not in self._blocks and self._holds(part.name, self._blocks)
            if around or (several and part.is_chain()):
                yield from self._opened(part)
            else:
                yield part

    def _called_once(self, name: str) -> bool:
        return all(count == 1 for own, count in self._calls.items() if _is_in(own, name))

    def _holds(self, name: str, among: Collection[str]) -> bool:
        return any(_is_in(own, name) for own in among)


def _in_chain(name: str, chain: str) -> bool:
    return any(_is_in(name, part) for part in names_in(chain))


def _is_in(name: str, module: str) -> bool:
    return name == module or name.startswith(f"{module}.")
