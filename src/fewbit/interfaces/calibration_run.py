"""A calibration as stages and parts, which someone quantizes one after the other."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fewbit.interfaces.forms import Trainable
from fewbit.interfaces.layer import Layer


@dataclass(frozen=True, slots=True)
class CalibratedPart:
    """Layers to quantize together, and what calibration has seen of their inputs."""

    layers: tuple[Layer, ...]
    #: Statistics by name, by layer; nothing for a layer that needs none or that no input reached.
    statistics: Mapping[str, Mapping[str, Any]]
    #: For layers that are solved already: what they are trained in.
    block: Trainable | None = None
    #: Of such layers: why they cannot be trained, or not as asked.
    remarks: tuple[str, ...] = ()

    @property
    def again(self) -> bool:
        """Whether its layers are solved already, each for itself."""
        return self.block is not None or bool(self.remarks)


class CalibrationRun(Protocol):
    """The stages of a calibration, each an iterator of parts."""

    @property
    def gradients(self) -> Iterable[None]:
        """Steps, which have a length, to go through before the stages: where statistics want gradients."""

    def __len__(self) -> int:
        """Return the number of stages."""

    def __iter__(self) -> Iterator[Iterator[CalibratedPart]]:
        """Yield the stages; quantize and install the layers of a part before asking for the next."""


class DividedRun(CalibrationRun, Protocol):
    """A calibration that has some of the batches; others have the rest."""

    def row_means(self) -> Mapping[str, Sequence[float]]:
        """Return what the gradients say in the mean over each batch, once they were gone through."""

    def weigh(self, means: Sequence[Mapping[str, Sequence[float]]]) -> None:
        """Take the means that all have, in the order of the samples, before the stages."""
