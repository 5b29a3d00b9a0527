"""How large numbers get: the weight of a layer, and what goes in and comes out of layers while batches run.

max |w|, max |x|, max |y|; a cast that ends below would overflow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fewbit.errors import NonFiniteError
from fewbit.frontends.torch.calls import run_batch


def largest_weight(weight: Tensor) -> float | None:
    """Return the largest magnitude; `None` of a tensor without numbers on the meta device."""
    return None if weight.is_meta else _largest(weight.detach())


def largest_activations(
    model: nn.Module, names: Iterable[str], batches: Sequence[Any]
) -> dict[str, tuple[float, float]]:
    """Return the largest magnitudes of the input and the output of the modules called `names`, where a batch came.

    Raises:
        NonFiniteError: one of them holds NaN or infinity.

    """
    found: dict[str, tuple[float, float]] = {}

    @torch.no_grad()
    def watch(_: nn.Module, args: tuple[Any, ...], named: Mapping[str, Any], output: Tensor, *, name: str) -> None:
        given = args[0] if args else next(iter(named.values()))
        now = _largest(given), _largest(output)
        for what, largest in zip(("input", "output"), now, strict=True):
            if not largest < float("inf"):
                raise NonFiniteError(f"{name}: its {what} holds NaN or infinity before quantization; look upstream")
        before = found.get(name, (0.0, 0.0))
        found[name] = max(before[0], now[0]), max(before[1], now[1])

    handles = [
        model.get_submodule(name).register_forward_hook(partial(watch, name=name), with_kwargs=True) for name in names
    ]
    try:
        for batch in batches:
            run_batch(model, batch, every_score=True)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _largest(values: Tensor) -> float:
    """Return the largest magnitude of `values`, NaN where they hold one; whole numbers are indices and have none."""
    if not values.numel() or not values.is_floating_point():
        return 0.0
    low, high = values.aminmax()
    return float(torch.maximum(-low, high))
