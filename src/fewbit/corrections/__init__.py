"""What repairs a rounded model, one paper a file: a callable frozen dataclass each, by name in recipes.

A correction moves the bias of a layer once its weight is rounded; it sees arrays and statistics, never a model. One of
the whole model runs when all layers are rounded, `(model, frontend, batches, storage_type) -> Repaired`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

from fewbit.catalogue import parse_entry
from fewbit.formats.scale_type import ScaleType
from fewbit.numerics.namespace import Array

#: Corrections by name.
CORRECTIONS = {
    "bias": "fewbit.corrections.bias:CorrectBias",
    "batchnorm": "fewbit.corrections.batchnorm:ReestimateBatchNorm",
}


class Correction(Protocol):
    """A repair of one layer, behind the corrected ones before it."""

    @property
    def name(self) -> str:
        """The word for it in recipes."""

    @property
    def statistic(self) -> str | None:
        """What it has to know of the layer's input, behind quantized layers, and of its output in the float model.

        `None`: nothing that has to be measured; it is given the means that BatchNorms tell.
        """

    def __call__(self, weight: Array, given: Any, wanted: Any) -> Array:
        """Return the bias (out,) for the rounded `weight` (out, in), by the statistics of its input and its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repaired:
    """What a correction did to a model."""

    #: For the report: what changed, and what could not.
    sentences: tuple[str, ...]
    #: What it put into the model, with `install` and `restore`; `None`: nothing.
    switch: Any = None


@runtime_checkable
class ModelCorrection(Protocol):
    """A repair of a model whose layers are all rounded."""

    @property
    def name(self) -> str:
        """The word for it in recipes."""

    def repaired(self, model: Any, frontend: Any, batches: Sequence[Any], storage_type: ScaleType) -> Repaired:
        """Repair `model`, in which the quantized forms are installed; numbers become such as `storage_type` holds."""


AnyCorrection: TypeAlias = Correction | ModelCorrection


def on_layers(corrections: Sequence[AnyCorrection]) -> tuple[Correction, ...]:
    """Return those that move biases, layer by layer."""
    return tuple(own for own in corrections if not isinstance(own, ModelCorrection))


def on_models(corrections: Sequence[AnyCorrection]) -> tuple[ModelCorrection, ...]:
    """Return those that come when all layers are rounded."""
    return tuple(own for own in corrections if isinstance(own, ModelCorrection))


def parse_correction(value: str | dict[str, Any] | AnyCorrection) -> AnyCorrection:
    """Return the correction for a name, a table with `name` and options, or a correction.

    >>> parse_correction({"name": "bias", "means": "batchnorm"})
    CorrectBias(means='batchnorm')
    """
    kinds = (Callable, ModelCorrection)
    made: AnyCorrection = parse_entry(value, CORRECTIONS, what="correction", example="bias", kinds=kinds)
    return made
