"""Images that a module has made for itself: batches for calibration, and what a report says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, overload

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True, eq=False)
class SyntheticImages(Sequence[Any]):
    """Batches of images, each (count, *shape) in the type and on the device of the model."""

    batches: tuple[Tensor, ...]
    #: How they were made.
    method: str
    #: The loss at the start and at the end, means over the batches.
    losses: tuple[float, float]
    #: Steps that were taken, of the longest batch.
    iterations: int
    #: Class of each image, int64 (count,) by batch; empty where the method gives none.
    labels: tuple[Tensor, ...] = ()
    #: What else is known of them.
    notes: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.batches)

    @overload
    def __getitem__(self, index: int) -> Tensor: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, index: int | slice) -> Tensor | tuple[Tensor, ...]:
        return self.batches[index]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.batches)

    def __str__(self) -> str:
        count = sum(len(batch) for batch in self.batches)
        shape = "x".join(str(size) for size in self.batches[0].shape[1:])
        said = f"{count} synthetic images of {shape} ({self.method}), {self.iterations} steps, loss "
        return "; ".join((f"{said}{self.losses[0]:.4g} -> {self.losses[1]:.4g}", *self.notes))
