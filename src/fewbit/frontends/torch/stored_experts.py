"""Which layers checkpoints keep of experts that transformers merges into one parameter, as its way of saving shows.

Marks in the place of numbers, each its expert and its row, go through that way; where they come out tells which rows of
which expert a checkpoint keeps under which name, and which axis those are. No table of architectures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

#: What a mark is repeated along: the axis that is not taken apart.
_REPEATS = 2


@dataclass(frozen=True, slots=True)
class Projection:
    """Rows of the matrix (out, in) of each expert that checkpoints keep as a layer of its own."""

    #: The last part of its name, such as `gate_proj`.
    name: str
    #: The first of the rows, and the first behind them.
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class StoredExperts:
    """What checkpoints keep of a parameter (experts, a, b)."""

    #: Whether its matrices are (out, in); else (in, out).
    outputs_first: bool
    #: In the order of their rows, all rows together.
    projections: tuple[Projection, ...]
    #: The names of these layers in files, by number and name: `3.gate_proj`.
    names: Mapping[str, str]


def stored_experts(model: nn.Module, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, StoredExperts]:
    """Return by name what checkpoints keep of the parameters of these names and `shapes`; others are left out."""
    undo = undoing(model)
    if undo is None:
        return {}
    found = {name: _apart(undo, name, shape) for name, shape in shapes.items()}
    return {name: own for name, own in found.items() if own is not None}


Undoing = Callable[[dict[str, Tensor]], Mapping[str, Any]]


def undoing(model: nn.Module) -> Undoing | None:
    """Return what takes tensors of `model` apart as they are saved; `None`: it is no model of transformers."""
    if type(model).__module__.partition(".")[0] != "transformers":
        return None
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion

    if not isinstance(model, PreTrainedModel):
        return None
    return lambda tensors: revert_weight_conversion(model, tensors)


def _apart(undo: Undoing, name: str, shape: tuple[int, ...]) -> StoredExperts | None:
    experts, first, second = shape
    for outputs_first in (True, False):
        rows = first if outputs_first else second
        marks = torch.arange(experts * rows).view(experts, rows, 1).expand(experts, rows, _REPEATS)
        try:
            kept = undo({name: marks if outputs_first else marks.mT})
        except Exception:  # noqa: S112  # a step that takes other shapes only: the axes are not these
            continue
        projections = _projections(kept, experts, rows)
        if projections:
            layers = [own.removesuffix(".weight") for own in kept]
            return StoredExperts(outputs_first, projections, {".".join(own.split(".")[-2:]): own for own in layers})
    return None


def _projections(kept: Mapping[str, Any], experts: int, rows: int) -> tuple[Projection, ...]:
    """Return the rows that each expert's layers have; nothing where some of them are no such layers."""
    found: dict[int, set[Projection]] = {number: set() for number in range(experts)}
    for name, marks in kept.items():
        *_, number, leaf, last = ("", "", *name.split("."))
        if last != "weight" or not number.isdigit() or int(number) not in found or not _is_run(marks):
            return ()
        start = int(marks[0, 0]) - int(number) * rows
        found[int(number)].add(Projection(leaf, start, start + len(marks)))
    if any(own != found[0] for own in found.values()):
        return ()
    in_order = tuple(sorted(found[0], key=lambda own: own.start))
    return in_order if _covers(in_order, rows) else ()


def _is_run(marks: Any) -> bool:
    """Whether these are rows one after the other, as of the weight (out, in) of a linear layer."""
    if not isinstance(marks, Tensor) or marks.ndim != 2 or marks.shape[1] != _REPEATS or not len(marks):
        return False
    wanted = torch.arange(len(marks))[:, None] + marks[0, 0]
    return bool((marks == wanted).all())


def _covers(projections: Iterable[Projection], rows: int) -> bool:
    """Whether rows begin at 0, end at `rows`, and follow one another."""
    ends = [(0, 0), *((own.start, own.stop) for own in projections), (rows, rows)]
    return all(before[1] == after[0] for before, after in pairwise(ends))
