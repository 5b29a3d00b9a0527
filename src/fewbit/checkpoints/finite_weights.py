"""Weights that are read are numbers: scales that are finite may still make infinite ones, as 2^127 times 6 is."""

from __future__ import annotations

import numpy as np

from fewbit.errors import CheckpointError
from fewbit.numerics.namespace import to_numpy
from fewbit.qtensor import QTensor

#: No level of any format times a scale below this is infinite, so that weights are looked at above it only.
_SAFE = 2.0**100


def require_finite_weights(qtensor: QTensor) -> None:
    """Raise `CheckpointError` if codes and scales (NumPy arrays) stand for NaN or infinity in float32."""
    with np.errstate(over="ignore", invalid="ignore"):
        largest = float(np.abs(to_numpy(qtensor.scale_values())).max())
        if largest < _SAFE:
            return
        weights = to_numpy(qtensor.dequantize())
    bad = int((~np.isfinite(weights)).sum())
    if bad:
        raise CheckpointError(
            f"{bad} of {weights.size} weights are NaN or infinite under scales up to {largest:.3g}; the file is damaged"
        )
