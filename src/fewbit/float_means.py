"""What corrections know of the float model: means of outputs on data, and means of inputs that BatchNorms tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbit.interfaces import Frontend
from fewbit.known_output import KnownOutput
from fewbit.plan_row import PlanRow
from fewbit.solved import Data
from fewbit.statistics.mean import Mean


def float_outputs(model: Any, rows: Mapping[str, PlanRow], frontend: Frontend, data: Data) -> dict[str, dict[str, Any]]:
    """Return the statistics that corrections want of the outputs of layers; none is quantized yet."""
    found: dict[str, dict[str, Any]] = {}
    asked = {name: {own.statistic for own in row.corrections if own.statistic} for name, row in rows.items()}
    for statistic in sorted(set().union(*asked.values())):
        named = [name for name, own in asked.items() if statistic in own]
        for name, own in frontend.output_statistics(model, dict.fromkeys(named, statistic), data.batches).items():
            found.setdefault(name, {})[statistic] = own
    return found


def known_inputs(
    model: Any, rows: Mapping[str, PlanRow], frontend: Frontend, data: Data, outputs: Mapping[str, KnownOutput]
) -> Mapping[str, Mean]:
    """Return the means of the rows of inputs that BatchNorms tell, where a correction asks for those.

    `outputs` are those of layers that norms were folded into.
    """
    wanted = [name for name, row in rows.items() if any(own.statistic is None for own in row.corrections)]
    return frontend.known_inputs(model, wanted, outputs, data.example) if wanted else {}
