"""What became of a layer, read back from plain values: those that `fewbit.report.data.plain` makes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbit.evaluation.level_histogram import LevelHistogram
from fewbit.report.layer_report import LayerReport


def layer_report_of(table: Mapping[str, Any]) -> LayerReport:
    """Return the report of a layer that `table` was made of."""
    own = {name: _value(name, value) for name, value in table.items()}
    found = table["histogram"]
    histogram = found and LevelHistogram(**{name: _value(name, value) for name, value in found.items()})
    return LayerReport(**{**own, "histogram": histogram})


def _value(name: str, value: Any) -> Any:
    """Return a value with tuples for lists, and numbers for those that JSON has no place for."""
    if isinstance(value, list):
        return tuple(_value(name, part) for part in value)
    return float(value) if isinstance(value, str) and value in ("inf", "-inf", "nan") and name != "name" else value
