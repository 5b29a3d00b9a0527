"""Embeddings whose rows are multiplied by one number behind the table, as those of Gemma and BART: y = c E[i].

What a subclass of `nn.Embedding` computes is proven by the operators that a run of it calls, on any device, meta too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import is_parametrized
from torch.utils._python_dispatch import TorchDispatchMode

_LOOKED_UP, _TIMES = torch.ops.aten.embedding.default, torch.ops.aten.mul.Tensor


@dataclass(frozen=True, slots=True)
class Lookup:
    """What an embedding does: it takes rows of its weight, and multiplies them by `factor` unless that is `None`."""

    factor: Tensor | float | None = None

    @classmethod
    def of(cls, module: nn.Module) -> Lookup | None:
        """Return what `module` does, or `None` if it is no embedding or does something else."""
        if not isinstance(module, nn.Embedding) or module.max_norm is not None:
            return None  # with max_norm it rewrites its weight while it runs
        if type(module) is nn.Embedding:
            return cls()
        if is_parametrized(module) or _holds_more(module):
            return None
        seen, first = _Seen(module.weight), torch.zeros(1, 1, dtype=torch.long, device=module.weight.device)
        try:
            with torch.no_grad(), seen:
                made = module.forward(first)
        except Exception:  # it wants other arguments, or what someone else's module raises
            return None
        return seen.lookup(made)


class _Seen(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the operators that a module calls."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._weight = weight
        self._rows: Any = None
        self._product: Any = None
        self._factor: Any = None
        self._other = False

    def lookup(self, made: Any) -> Lookup | None:
        """Return what was seen, if `made` comes of nothing else."""
        if self._other or made is None:
            return None
        if self._product is None:
            return Lookup() if made is self._rows else None
        return Lookup(self._factor) if made is self._product else None

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        if func is _LOOKED_UP and args[0] is self._weight and self._rows is None:
            self._rows = found
        elif func is _TIMES and args[0] is self._rows and self._product is None and _one_number(args[1]):
            self._product, self._factor = found, args[1]
        elif any(isinstance(own, Tensor) and own.ndim for own in (found, *args)):
            self._other = True  # all that is left to happen is that the factor takes the type of the rows
        return found


def _holds_more(module: nn.Embedding) -> bool:
    """Whether there is something besides the weight that a checkpoint would have to hold."""
    buffers = module._buffers.keys() - module._non_persistent_buffers_set
    return bool(buffers or module._modules or module._parameters.keys() - {"weight"})


def _one_number(value: Any) -> bool:
    return isinstance(value, int | float) or (isinstance(value, Tensor) and value.ndim == 0)


class ScaledEmbedding(nn.Embedding):
    """An embedding that multiplies its rows by `factor`, in their own type."""

    factor: Tensor

    def __init__(self, rows: int, width: int, factor: Tensor | float, device: str | None = None) -> None:
        super().__init__(rows, width, device=device)
        self.register_buffer("factor", torch.as_tensor(factor), persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  # as torch's own
        """Return the rows at `input` (...), as (..., width)."""
        return scaled(super().forward(input), self.factor)


def scaled(rows: Tensor, factor: Tensor | None) -> Tensor:
    """Return `rows` times `factor`, which is rounded to their type first."""
    return rows if factor is None else rows * factor.to(rows.dtype)
