"""What a training takes: bytes of weights, gradients, states of the optimizer, and what is kept for the way back.

The first three are sums over parameters; the last is what one forward of a batch saves for its gradients.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from fewbit.catalogue import unknown
from fewbit.errors import RecipeError
from fewbit.evaluation.size import megabytes

#: Numbers that optimizers of torch keep for each number of a parameter.
STATES = {"adamw": 2, "adam": 2, "sgd": 0, "sgd-momentum": 1}
#: Bytes beside them for each parameter: Adam counts its steps in a float32.
STEP = {"adamw": 4, "adam": 4, "sgd": 0, "sgd-momentum": 0}
_HEAD = ("bytes of", "numbers", "weights", "gradients", "optimizer")


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryRow:
    """A part of the model."""

    what: str
    #: How many numbers it has; of codes how many bytes.
    numbers: int
    weights: int
    gradients: int = 0
    optimizer: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingMemory:
    """Bytes of a training; printed, it is a table."""

    #: One of `STATES`.
    optimizer_name: str
    rows: tuple[MemoryRow, ...]
    #: What a forward saves for the way back; `None`: no batch was given.
    activations: int | None = None

    @property
    def weights(self) -> int:
        """Of parameters, buffers and codes."""
        return sum(row.weights for row in self.rows)

    @property
    def gradients(self) -> int:
        """Of what is trained."""
        return sum(row.gradients for row in self.rows)

    @property
    def optimizer(self) -> int:
        """Of the states of the optimizer."""
        return sum(row.optimizer for row in self.rows)

    @property
    def whole(self) -> int:
        """All of it; without a batch, without activations."""
        return self.weights + self.gradients + self.optimizer + (self.activations or 0)

    def to_dict(self) -> dict[str, Any]:
        """Return everything as numbers and words."""
        sums = {name: getattr(self, name) for name in ("weights", "gradients", "optimizer", "activations", "whole")}
        return {"optimizer_name": self.optimizer_name, "rows": [asdict(row) for row in self.rows], **sums}

    def __str__(self) -> str:
        sums = MemoryRow(
            what="in all",
            numbers=sum(row.numbers for row in self.rows),
            weights=self.weights,
            gradients=self.gradients,
            optimizer=self.optimizer,
        )
        cells = [(*_HEAD[:-1], self.optimizer_name), *(_cells(row) for row in (*self.rows, sums))]
        kept = "unknown; give a batch" if self.activations is None else megabytes(self.activations)
        cells += [("saved by a forward", "", kept, "", ""), ("whole", "", megabytes(self.whole), "", "")]
        widths = [max(len(row[column]) for row in cells) for column in range(len(_HEAD))]
        sides = "<" + ">" * (len(_HEAD) - 1)
        lines = [
            "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True))
            for row in cells
        ]
        return "\n".join(line.rstrip() for line in lines)


def require_known(optimizer: str) -> None:
    """Raise `RecipeError` for an optimizer whose states are not known."""
    if optimizer not in STATES:
        raise RecipeError(unknown(optimizer, STATES, what="optimizer"))


def training_memory(model: Any, *, batch: Any = None, optimizer: str = "adamw") -> TrainingMemory:
    """Return what training `model` as it is takes: prepared by `prepare_qat` or `prepare_adapters`, or a float module.

    Args:
        model: stays as it is; with a batch, a copy of it runs.
        batch: a tensor, a tuple of arguments or a dict of keyword arguments, as a step of the training has it.
        optimizer: `adamw`, `adam`, `sgd`, `sgd-momentum`.

    Raises:
        RecipeError: another optimizer.

    >>> import torch
    >>> print(training_memory(torch.nn.Linear(500, 200), optimizer="sgd-momentum"))
    bytes of            numbers                weights  gradients  sgd-momentum
    everything else     100,200               400.8 kB   400.8 kB      400.8 kB
    in all              100,200               400.8 kB   400.8 kB      400.8 kB
    saved by a forward           unknown; give a batch
    whole                                       1.2 MB

    """
    from fewbit.training.measuring import measured

    require_known(optimizer)
    return measured(model, batch, optimizer)


def _cells(row: MemoryRow) -> tuple[str, ...]:
    sizes = (megabytes(size) if size else "" for size in (row.weights, row.gradients, row.optimizer))
    return (row.what, f"{row.numbers:,}", *sizes)
