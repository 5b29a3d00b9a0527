"""A layer as a flat dict, a row of a table: `pandas.DataFrame(report.records())`."""

from __future__ import annotations

from math import prod
from typing import Any

from fewbit.report.drawing import error
from fewbit.report.layer_report import LayerReport

_PLAIN = (
    "name", "kind", "becomes", "asked", "algorithm", "bytes_before", "bytes_after", "weight_sqnr", "output_sqnr",
    "nearest_sqnr", "solved_sqnr", "damping", "seconds", "kernel", "fast", "kept",
)  # fmt: skip


def record(layer: LayerReport) -> dict[str, Any]:
    """Return what is known of `layer`, one value a column; lists of texts are joined by semicolons."""
    weights, given = prod(layer.shape), layer.inputs
    return {
        **{name: getattr(layer, name) for name in _PLAIN},
        "outputs": layer.shape[0],
        "inputs": layer.shape[1],
        "weights": weights,
        "bits": 8 * layer.bytes_after / weights if weights and not layer.kept else None,
        "output_error": None if layer.output_sqnr is None else error(layer.output_sqnr),
        "weights_clipped": sum(layer.histogram.clipped) if layer.histogram else None,
        "levels_used": layer.histogram.used if layer.histogram else None,
        "input_low": given.low if given else None,
        "input_high": given.high if given else None,
        "input_clipped": given.clipped if given else None,
        "input_outlier": given.outliers[0][1] if given else None,
        "notes": "; ".join(layer.notes),
        "remarks": "; ".join(layer.remarks),
    }
