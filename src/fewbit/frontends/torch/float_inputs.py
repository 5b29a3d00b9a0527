"""What layers of a block are given while it is float, and so is all before it: beside what they get later.

Listens while a block runs; layers that get one tensor share the copy of it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, Self

from torch import Tensor, nn


class FloatInputs:
    """The inputs of some layers, by call of the block; listens while it is open."""

    def __init__(self, model: nn.Module, names: Collection[str]) -> None:
        self._model = model
        self._seen: dict[str, list[Tensor]] = {name: [] for name in names}
        self._last: tuple[Tensor, Tensor] | None = None
        self._hooks = ExitStack()

    def by_layer(self, calls: int) -> dict[str, Sequence[Tensor]]:
        """Return the inputs of the layers that each of that many calls reached once."""
        return {name: seen for name, seen in self._seen.items() if len(seen) == calls > 0}

    def __enter__(self) -> Self:
        for name in self._seen:
            hook = self._model.get_submodule(name).register_forward_pre_hook(self._enter(name), with_kwargs=True)
            self._hooks.callback(hook.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._hooks.close()
        self._last = None

    def _enter(self, name: str) -> Any:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:  # noqa: ARG001
            rows = args[0] if args else next(iter(kwargs.values()))
            if self._last is None or self._last[0] is not rows:
                self._last = rows, rows.detach().clone()  # what follows may write into it
            self._seen[name].append(self._last[1])

        return hook
