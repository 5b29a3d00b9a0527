"""Parts of a live model in two forms, float and quantized, and what the quantized one runs on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from fewbit.activation import Activation
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces.layer import Layer
from fewbit.numerics.namespace import Array
from fewbit.qtensor import QTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Activations:
    """How a layer's input and output are rounded; `None`: not at all."""

    input: Activation | None = None
    output: Activation | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Execution:
    """What a quantized layer runs on."""

    #: Name of the kernel.
    kernel: str
    #: Whether it is faster than the float layer.
    fast: bool
    #: Up to how many rows of inputs it is; `None`: however many.
    rows: int | None = None
    #: Why it is not, or no faster kernel computes the layer.
    why: tuple[str, ...] = ()

    def __str__(self) -> str:
        if self.fast:
            return f"{self.kernel}, faster for up to {self.rows} rows" if self.rows else self.kernel
        why = f": {'; '.join(self.why)}" if self.why else ""
        return f"{self.kernel}, not faster than float{why}"


class Switch(Protocol):
    """Something of a live model in its two forms; exactly one of them is installed."""

    def install(self) -> None:
        """Put the quantized form into the model."""

    def restore(self) -> None:
        """Put the float form back."""


class Forms(Switch, Protocol):
    """A layer of a live model in its two forms."""

    @property
    def layer(self) -> Layer:
        """Which layer."""


class Replacement(Forms, Protocol):
    """A layer with a weight in its two forms."""

    @property
    def qtensor(self) -> QTensor:
        """The quantized weight."""

    @property
    def integer_bias(self) -> IntegerBias | None:
        """Its bias in int32; `None`: it is float, or there is none."""

    def fix_output(self, activation: Activation) -> None:
        """Round the output of the quantized form by a range that is known now."""


class Trainable(Protocol):
    """A part of a model that runs with trial weights; its layers are quantized and installed."""

    @property
    def targets(self) -> Sequence[Array]:
        """What the float part puts out for each sample."""

    @property
    def row_weights(self) -> Sequence[Array] | None:
        """How much an error of each row of each target counts, (rows,), of mean 1 over all; `None`: not known."""

    def forward(self, weights: Mapping[str, Array], sample: int) -> Array:
        """Return the output for a sample with these weights (out, in) by layer, differentiable in them."""

    def together(self, weights: Mapping[str, Array], samples: Sequence[int]) -> Sequence[Array] | None:
        """Return the outputs for several samples from one run; `None` where they have to run one by one."""

    def curvature(self) -> Sequence[Array] | None:
        """Return how much an error of each number of each target counts for the whole model; `None`: not known."""
