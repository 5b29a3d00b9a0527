"""Bias correction: b' = E[y] - W' E[x'], so that each output has the mean that it has in the float model.

y is the output there, x' what reaches the layer behind quantized ones, W' its rounded weight: errors do not cancel
where inputs are positive. By BatchNorms, without data: b' = b - (W' - W) E[x]. Source: arXiv 1906.04721, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewbit.errors import RecipeError
from fewbit.numerics.namespace import Array, array_namespace

if TYPE_CHECKING:
    from fewbit.statistics.mean import Mean

#: Where means come from.
_SOURCES = ("calibration", "batchnorm")


@dataclass(frozen=True, slots=True)
class CorrectBias:
    """Move biases so that outputs keep their means."""

    #: `calibration`: measured on the calibration data, behind quantized layers. `batchnorm`: of the float model, as the
    #: BatchNorms before a layer tell them, without data.
    means: str = "calibration"

    def __post_init__(self) -> None:
        if self.means not in _SOURCES:
            raise RecipeError(f"correction bias: means {self.means!r:.80} is none of {', '.join(_SOURCES)}")

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "bias"

    @property
    def statistic(self) -> str | None:
        """Means of the rows of the layer's input, and of its outputs in the float model."""
        return "mean" if self.means == "calibration" else None

    def __call__(self, weight: Array, given: Mean, wanted: Mean) -> Array:
        """Return the bias, float32 (out,), of a rounded `weight` (out, in).

        Of a convolution with groups `given` holds the inputs of all, (groups * in,).
        """
        xp = array_namespace(weight)
        return xp.astype(xp.asarray(wanted.result()) - mean_products(weight, given), xp.float32)


def mean_products(weight: Array, given: Mean) -> Array:
    """Return W E[x], float64 (out,), of a `weight` (out, in); of one with groups `given` holds the inputs of all."""
    xp = array_namespace(weight)
    means = xp.asarray(given.result())
    groups = means.shape[0] // weight.shape[1]
    rows = xp.reshape(xp.astype(weight, xp.float64), (groups, -1, weight.shape[1]))
    return xp.reshape(xp.matmul(rows, xp.reshape(means, (groups, -1, 1))), (-1,))
