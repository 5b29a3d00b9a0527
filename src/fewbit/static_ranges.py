"""Ranges of inputs and outputs that calibration fixes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbit.activation import Activation
from fewbit.errors import CalibrationError
from fewbit.interfaces import Activations, Frontend
from fewbit.plan_row import PlanRow
from fewbit.solved import Data, Solved

#: Why a range cannot be fixed.
UNREACHED = "no calibration input reached it, so it has no range; give other batches, or keep it"


def output_statistic(row: PlanRow) -> str | None:
    """Return what has to be known of the layer's output."""
    return row.output.ranging.statistic if row.output and row.output.static else None


def fix_outputs(
    model: Any, solved: Mapping[str, Solved], rows: Mapping[str, PlanRow], frontend: Frontend, data: Data
) -> None:
    """Fix the static ranges of outputs, by what the quantized layers put out before any of those is rounded."""
    fixed = {name: row.output for name, row in rows.items() if row.output and row.output.static}
    asked = {name: statistic for name in fixed if (statistic := output_statistic(rows[name]))}
    wanted = {name: statistic for name, statistic in asked.items() if name not in data.known_outputs}
    found = {**data.known_outputs, **(frontend.output_statistics(model, wanted, data.batches) if wanted else {})}
    for name, scheme in fixed.items():
        if name in wanted and name not in found:
            raise CalibrationError(f"{name}: {UNREACHED}")
        solved[name].replacement.fix_output(Activation.calibrated(scheme, found.get(name)))


def activations_of(row: PlanRow, statistics: Mapping[str, Any]) -> Activations:
    """Return how input and output are rounded; a static range comes from its statistic.

    Raises:
        CalibrationError: no calibration input reached the layer.

    """
    output = Activation(scheme=row.output) if row.output and not row.output.static else None
    if row.input is None or not row.input.static:
        return Activations(input=Activation(scheme=row.input) if row.input else None, output=output)
    name = row.input.ranging.statistic
    if name is not None and name not in statistics:
        raise CalibrationError(UNREACHED)
    return Activations(input=Activation.calibrated(row.input, statistics.get(name) if name else None), output=output)
