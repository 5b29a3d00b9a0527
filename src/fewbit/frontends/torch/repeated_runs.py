"""Runs of a block that are made anew up to a layer, one at a time: what each is given there, without any that waits.

What `PausedRuns` gives at the price of memory this gives at the price of time, to the bit.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fewbit.frontends.torch.calls import Call


class RepeatedRuns:
    """Calls of a block that can be made any number of times."""

    def __init__(self, model: nn.Module, block: nn.Module, calls: Sequence[Call]) -> None:
        self._model, self._block, self._calls = model, block, calls

    def reach(self, leader: str) -> Iterator[Tensor | None]:
        """Make every call up to the layer called `leader`; yield what it is given there, `None`: it is not called."""
        for call in self._calls:
            yield self._given(call, leader)

    def _given(self, call: Call, leader: str) -> Tensor | None:
        seen: list[Tensor] = []

        def enter(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG001
            seen.append(args[0] if args else next(iter(kwargs.values())))
            raise _ReachedError

        layer = self._model.get_submodule(leader)
        hook = layer.register_forward_pre_hook(enter, with_kwargs=True, prepend=True)
        try:
            call.copy().run(self._block)
        except _ReachedError:
            pass
        finally:
            hook.remove()
        return seen[0] if seen else None


class _ReachedError(BaseException):
    """Stops a forward early; no `except Exception` inside a model catches it."""
