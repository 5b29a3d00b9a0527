"""Bias correction: b' = E[y] - W' E[x'], so that each output has the mean that it has in the float model.

y is the output there, x' what reaches the layer behind quantized ones, W' its rounded weight. Rounding errors of inputs
that are all positive do not cancel but shift the output. Source: Nagel et al. 2019, arXiv 1906.04721, section 4.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewbit.numerics.namespace import Array, array_namespace

if TYPE_CHECKING:
    from fewbit.statistics.mean import Mean


@dataclass(frozen=True, slots=True)
class CorrectBias:
    """Move biases so that outputs keep their means over the calibration data."""

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "bias"

    @property
    def statistic(self) -> str:
        """Means of the rows of the layer's input, and of its outputs in the float model."""
        return "mean"

    def __call__(self, weight: Array, given: Mean, wanted: Mean) -> Array:
        """Return the bias, float32 (out,), of a rounded `weight` (out, in).

        Of a convolution with groups `given` holds the inputs of all, (groups * in,).
        """
        xp = array_namespace(weight)
        means = xp.asarray(given.result())
        groups = means.shape[0] // weight.shape[1]
        rows = xp.reshape(xp.astype(weight, xp.float64), (groups, -1, weight.shape[1]))
        products = xp.matmul(rows, xp.reshape(means, (groups, -1, 1)))
        return xp.astype(xp.asarray(wanted.result()) - xp.reshape(products, (-1,)), xp.float32)
