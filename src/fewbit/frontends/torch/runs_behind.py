"""Run a model again with some of its layers changed, without the blocks that come before all of these.

What each block put out in the float model is kept, for every batch; its forward gives that back where nothing before it
has changed. It is used only where the first batch has shown that the output stays the same to the bit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import nn

from fewbit.frontends.torch.blocks import find_blocks
from fewbit.frontends.torch.calls import copied, items, run_batch, same, scores_of
from fewbit.frontends.torch.forward_attribute import get_forward, set_forward
from fewbit.interfaces import Layer


@dataclass(slots=True)
class _Seen:
    """What a float run showed."""

    output: Any = None
    #: Blocks in the order in which they ended, those that are called once.
    order: list[str] = field(default_factory=list)
    outputs: dict[str, Any] = field(default_factory=dict)
    calls: Counter[str] = field(default_factory=Counter)
    #: How many blocks had ended when a layer outside of all was called first.
    before: dict[str, int] = field(default_factory=dict)


class RunsBehind:
    """Float runs of a model on some batches, and runs behind a change."""

    def __init__(self, model: nn.Module, layers: Sequence[Layer], batches: Sequence[Any]) -> None:
        """Run the float model on every batch; memory holds the output of each block."""
        found = find_blocks(model, layers)
        self._model, self._batches = model, batches
        self._block_of = {layer.name: block.name for block in found.blocks for layer in block.layers}
        self._outside = [layer.name for layer in found.outside]
        self._runs = [self._seen(batch) for batch in batches]
        #: Whether blocks before a change are left out.
        self.reuses = bool(self._runs and self._runs[0].order) and self._proven()

    @property
    def floats(self) -> list[Any]:
        """The outputs of the float model."""
        return [seen.output for seen in self._runs]

    def outputs(self, names: Collection[str]) -> Iterator[Any]:
        """Yield the output for each batch of the model as it now is, where nothing but the layers `names` changed."""
        for batch, seen in zip(self._batches, self._runs, strict=True):
            yield self._run(batch, seen, self._unchanged(names, seen) if self.reuses else [])

    def _seen(self, batch: Any) -> _Seen:
        seen = _Seen()

        def leave(name: str, module: nn.Module, args: Any, output: Any) -> None:  # noqa: ARG001
            seen.calls[name] += 1
            seen.order.append(name)
            seen.outputs[name] = copied(output)

        def enter(name: str, module: nn.Module, args: Any) -> None:  # noqa: ARG001
            seen.before.setdefault(name, len(seen.order))

        with ExitStack() as hooks:
            for name in set(self._block_of.values()):
                hooks.callback(self._model.get_submodule(name).register_forward_hook(partial(leave, name)).remove)
            for name in self._outside:
                hooks.callback(self._model.get_submodule(name).register_forward_pre_hook(partial(enter, name)).remove)
            seen.output = copied(run_batch(self._model, batch, every_score=True))
        return seen

    def _unchanged(self, names: Collection[str], seen: _Seen) -> list[str]:
        """Return the blocks that end before the first of the layers `names` is called."""
        places = [len(seen.order)]
        for name in names:
            block = self._block_of.get(name)
            if block is None:
                places.append(seen.before.get(name, len(seen.order)))
            elif block in seen.order:
                places.append(seen.order.index(block))
        return seen.order[: min(places)]

    def _run(self, batch: Any, seen: _Seen, known: Sequence[str]) -> Any:
        with ExitStack() as undo:
            for name in known:
                module = self._model.get_submodule(name)
                undo.callback(set_forward, module, get_forward(module))
                module.forward = partial(_answer, seen.outputs[name])
            return run_batch(self._model, batch, every_score=True)

    def _proven(self) -> bool:
        """Whether each block is called once, and the model's output is the same with all of them left out."""
        if any(count > 1 for seen in self._runs for count in seen.calls.values()):
            return False
        try:
            output = self._run(self._batches[0], self._runs[0], self._runs[0].order)
        except Exception:  # whatever someone else's model does with parts that have not run
            return False
        return same(_main(output), _main(self._runs[0].output))


def _answer(output: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: ARG001
    """Return what the block put out, in tensors that the next one may write into."""
    return copied(output)


def _main(output: Any) -> Any:
    found = scores_of(output)
    return items(output) if found is None else found
