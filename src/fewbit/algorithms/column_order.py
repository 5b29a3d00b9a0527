"""In which order GPTQ rounds the columns: `none`, `activation`, `group-aware`.

activation: by falling diagonal of H ("act-order"). group-aware: by falling diagonal inside each group, groups by their
largest diagonal, so that groups stay whole and no index is needed at run time (arXiv 2505.14638).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from torch import Tensor

Order = Literal["none", "activation", "group-aware"]
#: (start, stop) of the columns that share a scale.
Span = tuple[int, int]


def _none(diagonal: Tensor, spans: list[Span]) -> Tensor:  # noqa: ARG001
    import torch

    return torch.arange(diagonal.shape[0], device=diagonal.device)


def _activation(diagonal: Tensor, spans: list[Span]) -> Tensor:  # noqa: ARG001
    return diagonal.argsort(descending=True, stable=True)


def _group_aware(diagonal: Tensor, spans: list[Span]) -> Tensor:
    import torch

    largest = [float(diagonal[start:stop].max()) for start, stop in spans]
    groups = sorted(range(len(spans)), key=lambda group: -largest[group])
    inside = [
        spans[group][0] + diagonal[slice(*spans[group])].argsort(descending=True, stable=True) for group in groups
    ]
    return torch.cat(inside)


#: Order by name: from the diagonal of H and the groups to the columns in the order in which they are rounded.
ORDERS: dict[str, Callable[[Tensor, list[Span]], Tensor]] = {
    "none": _none,
    "activation": _activation,
    "group-aware": _group_aware,
}
