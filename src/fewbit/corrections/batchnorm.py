"""BatchNorms learn mean and variance anew, of what the quantized layers before them put out.

Over batches t: m = (1 / T) sum m_t and v = (1 / T) sum v_t n / (n - 1), each batch being normalized by its own m_t and
v_t, which are over n numbers. Sources: Sun et al. 2019, NeurIPS, section 3; AIMET, BatchNorm re-estimation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from fewbit.corrections import Repaired
from fewbit.formats.scale_type import ScaleType


@dataclass(frozen=True, slots=True)
class ReestimateBatchNorm:
    """Re-estimate the running mean and variance of every BatchNorm that stands in the model."""

    @property
    def name(self) -> str:
        """The word for it in recipes."""
        return "batchnorm"

    def repaired(self, model: Any, frontend: Any, batches: Sequence[Any], storage_type: ScaleType) -> Repaired:
        """Run the calibration data through the quantized model, and keep what the norms see."""
        repaired: Repaired = frontend.reestimate_norms(model, batches, storage_type)
        return repaired


#: Where there is nothing to do.
NO_NORM = Repaired(
    sentences=(
        "correction batchnorm: no BatchNorm stands in the model, so nothing was re-estimated; norms that were folded "
        "are repaired by correction bias",
    )
)


def reestimated_sentence(count: int, batches: int) -> str:
    """Return what the report says of so many norms.

    >>> reestimated_sentence(2, 1)
    'correction batchnorm: means and variances of 2 BatchNorms were re-estimated on 1 batch'
    """
    what = "mean and variance of 1 BatchNorm" if count == 1 else f"means and variances of {count} BatchNorms"
    return f"correction batchnorm: {what} were re-estimated on {batches} batch{'' if batches == 1 else 'es'}"


def unreached_sentence(names: Sequence[str]) -> str:
    """Return what the report says of norms that no batch reaches.

    >>> unreached_sentence(["norm"])
    'correction batchnorm: norm: no calibration input reached it, so it stays as it was'
    """
    return f"correction batchnorm: {', '.join(names)}: no calibration input reached it, so it stays as it was"
