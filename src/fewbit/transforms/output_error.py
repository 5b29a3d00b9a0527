"""The error that rounding leaves in the outputs of a link's consumers, for trial factors.

Sum over consumers of mean over rows |A(x / f) Q(W f)^T - x W^T|^2 / |x|^2, as a share of that of x W^T; A rounds inputs
where the recipe does, Q weights. Every row counts alike, however large: a few tokens have huge activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fewbit.numerics.namespace import Array, array_namespace, constants_like
from fewbit.qtensor import quantize
from fewbit.schemes.scheme import Scheme
from fewbit.transforms.link import Factors
from fewbit.transforms.scope import Rounded


@dataclass(frozen=True, slots=True)
class OutputError:
    """Consumers of one link on some rows of their input."""

    #: float32 (rows, in).
    rows: Array
    #: Each (out, in), with how it is rounded.
    weights: Sequence[tuple[Array, Rounded]]

    def __call__(self, columns: Factors) -> float:
        """Return the error with columns of the weights multiplied by `columns` (in,), and inputs divided."""
        xp = array_namespace(self.rows)
        factors = constants_like(columns.tolist(), "float32", self.rows)
        power = xp.sum(self.rows * self.rows, axis=-1, keepdims=True)
        share = xp.where(power > 0, 1.0 / xp.where(power > 0, power, xp.ones_like(power)), xp.zeros_like(power))
        whole = 0.0
        for weight, rounded in self.weights:
            weight = xp.astype(weight, xp.float32)  # noqa: PLW2901
            expected = xp.matmul(self.rows, weight.T)
            inputs = self.rows / factors
            if rounded.input is not None:
                inputs = quantize(inputs, _of_sample(rounded.input)).dequantize()
            found = xp.matmul(inputs, quantize(weight * factors, rounded.weight).dequantize().T)
            error, signal = (xp.sum(own * own * share) for own in (found - expected, expected))
            whole += float(error) / max(float(signal), 1e-30)
        return whole


def _of_sample(scheme: Scheme) -> Scheme:
    """Return the scheme under which the sample rounds itself: a static range is that of the sample."""
    return replace(scheme, static=False) if scheme.static else scheme
