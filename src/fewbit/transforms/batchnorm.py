"""BatchNorm folded into the layer before it: (w x + b - m) g / sqrt(v + e) + h = (w f) x + (b - m) f + h.

f = g / sqrt(v + e), a number an output channel. Source: Jacob et al. 2018, section 3.2.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from fewbit.known_output import KnownOutput
from fewbit.numerics.namespace import Array, array_namespace
from fewbit.transforms import Applied
from fewbit.transforms.scope import Rounded


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchNorm:
    """The numbers of a BatchNorm in inference, each (channels,)."""

    mean: Array
    variance: Array
    #: `None`: 1 and 0.
    gain: Array | None
    shift: Array | None
    epsilon: float

    def output(self) -> KnownOutput:
        """Return what it puts out when its input has the mean and the variance that it has seen.

        >>> norm = BatchNorm(mean=np.ones(1), variance=np.full(1, 3.0), gain=np.full(1, -2.0), shift=None, epsilon=1.0)
        >>> norm.output()
        KnownOutput(mean=array([0.]), variance=array([3.]))
        """
        variance = _numbers(self.variance)
        gain = np.ones_like(variance) if self.gain is None else _numbers(self.gain)
        shift = np.zeros_like(variance) if self.shift is None else _numbers(self.shift)
        return KnownOutput(shift, gain**2 * variance / (variance + self.epsilon), np.abs(gain))


def _numbers(values: Array) -> Any:
    """Return float64 numbers of NumPy."""
    return np.asarray(values.tolist(), np.float64)


@dataclass(frozen=True, slots=True)
class FoldBatchNorm:
    """Fold every BatchNorm that alone reads the output of a linear layer or convolution."""

    #: The norms are gone.
    removes_layers: ClassVar[bool] = True
    #: Widths stay.
    widens_layers: ClassVar[bool] = False

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "batchnorm"

    def problem(self, schemes: Mapping[str, Rounded]) -> None:
        """A norm less is a norm less, however the layers are rounded."""

    def __call__(self, model: Any, frontend: Any, batch: Any) -> Applied:
        """Fold, and keep each fold only if the model's output on `batch` stays what it was."""
        applied: Applied = frontend.fold_norms(model, batch, folded)
        return applied


def folded_sentence(count: int) -> str:
    """Return what the report says of so many folds.

    >>> folded_sentence(1)
    '1 BatchNorm was folded into the layer before it'
    """
    if count == 1:
        return "1 BatchNorm was folded into the layer before it"
    return f"{count} BatchNorms were folded into the layers before them"


def folded(weight: Array, bias: Array | None, norm: BatchNorm) -> tuple[Array, Array]:
    """Return weight (out, in) and bias (out,) of the layer that is both; computed in float64, of the weight's type.

    >>> import numpy as np
    >>> one, two = np.ones(1), np.full(1, 2.0)
    >>> norm = BatchNorm(mean=one, variance=np.full(1, 4.0), gain=two, shift=None, epsilon=0.0)
    >>> folded(np.full((1, 2), 3.0), None, norm)
    (array([[3., 3.]]), array([-1.]))
    """
    xp = array_namespace(weight)

    def exact(values: Array) -> Array:
        return xp.astype(values, xp.float64)

    factor = 1.0 / xp.sqrt(exact(norm.variance) + norm.epsilon)
    if norm.gain is not None:
        factor = factor * exact(norm.gain)
    start = -exact(norm.mean) if bias is None else exact(bias) - exact(norm.mean)
    moved = start * factor
    if norm.shift is not None:
        moved = moved + exact(norm.shift)
    return xp.astype(exact(weight) * factor[:, None], weight.dtype), xp.astype(moved, weight.dtype)
