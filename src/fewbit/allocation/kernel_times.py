"""What each choice takes of the time of a run: layers measured one by one, on the kernels that would run them here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fewbit.activation import Activation
from fewbit.allocation.subject import Subject
from fewbit.allocation.units import Unit
from fewbit.catalogue import lookup
from fewbit.errors import PlanError
from fewbit.interfaces import Activations, Layer
from fewbit.plan_row import PlanRow
from fewbit.qtensor import quantize

#: What measures layers, by framework.
TIMES = {"torch": "fewbit.frontends.torch.layer_times:LayerTimes"}


def kernel_times(subject: Subject, units: Sequence[Unit]) -> tuple[list[list[float]], float]:
    """Return seconds by unit and choice, and the seconds of a run that no unit accounts for.

    Raises:
        PlanError: a framework whose layers do not run by themselves.

    """
    if subject.framework not in TIMES:
        raise PlanError(
            f"a latency budget is measured layer by layer, which an {subject.framework} model does not run; give a "
            "size instead, and measure the file with fewbit evaluate"
        )
    layers = [layer for unit in units for layer in unit.layers]
    times: Any = lookup(TIMES, subject.framework, what="framework")(subject.model, layers, subject.batches[0])
    found = []
    for unit in subject.progress.track(units, "kernel times"):
        found.append(
            [
                sum(_seconds(subject, times, layer, row) for layer, row in zip(unit.layers, choice.rows, strict=True))
                for choice in unit.choices
            ]
        )
    floats = sum(times.of(layer, "float", None) for layer in layers)
    return found, max(times.whole - floats, 0.0)


def _seconds(subject: Subject, times: Any, layer: Layer, row: PlanRow) -> float:
    """Return what a layer takes; of a static input the rounding is that of a dynamic one, whose range is not known."""
    if row.scheme is None or times.knows(layer, row.becomes):
        return float(times.of(layer, row.becomes, None))
    qtensor = quantize(subject.frontend.weight(subject.model, layer), row.scheme)
    dynamic = row.input is not None and not row.input.static
    activations = Activations(input=Activation(scheme=row.input)) if dynamic and row.input else None
    return float(times.of(layer, row.becomes, qtensor, activations))
