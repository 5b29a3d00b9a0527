"""What a search found, put together for the report: layers, the curve of what could have been, rounds, fallbacks."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from fewbit.allocation.candidates import FLOAT
from fewbit.allocation.costs import Costs
from fewbit.allocation.greedy import frontier
from fewbit.allocation.loop import Round, Task, reported
from fewbit.allocation.opening import Opened
from fewbit.allocation.selection import Selection
from fewbit.allocation.units import Unit
from fewbit.problems import several
from fewbit.report.allocation import AllocatedLayer, AllocationPoint, AllocationReport

#: Points of the curve, besides the one that was chosen and uniform ones.
_POINTS = 24
#: What a point of the curve is called.
BEST = "best predicted"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A search that has come to its end."""

    place: Opened
    budget: str
    solver: str
    task: Task
    costs: Costs
    best: Round
    rounds: Sequence[Round]
    #: Bytes of what no unit holds.
    fixed: int
    #: From bytes of the model to bits of a weight.
    bits: Callable[[int], float]
    #: Seconds of a run, where they were the limit.
    seconds: float | None
    #: Whether the loop was run.
    measured: bool


def report_of(found: Found) -> AllocationReport:
    """Return the report of a search."""
    subject, best = found.place.subject, found.best
    size = best.bytes + found.fixed
    return AllocationReport(
        budget=found.budget,
        cost=subject.reference.cost,
        candidates=found.place.setting.candidates.names,
        constraints=found.place.setting.sentences,
        metric=found.costs.described,
        scored=found.costs.scored,
        refined=len(found.costs.measured),
        measured_on=_measured_on(found),
        solver=found.solver,
        gap=best.selection.gap,
        bytes=size,
        bits=found.bits(size),
        seconds=found.seconds,
        predicted=best.predicted,
        measured=best.measured if found.measured else None,
        layers=tuple(_layers(found)),
        pareto=tuple(_pareto(found)),
        rounds=reported(found.rounds, found.fixed, found.bits),
        notes=tuple(_notes(found)),
    )


def _measured_on(found: Found) -> str:
    single = f"single layers on {found.place.described}"
    return f"{single}; whole models on {found.place.evaluated}" if found.measured else single


def _layers(found: Found) -> list[AllocatedLayer]:
    chosen = dict(zip((unit.name for unit in found.task.units), found.best.selection.choices, strict=True))
    by_layer = {layer.name: (unit, place) for unit in found.task.units for place, layer in enumerate(unit.layers)}
    layers = []
    for layer in found.place.subject.layers:
        numbers = math.prod(layer.shape)
        if layer.name not in by_layer:
            size = found.place.kept_bytes.get(layer.name, 0)
            layers.append(
                AllocatedLayer(
                    name=layer.name, kind=layer.kind, numbers=numbers, scheme=FLOAT, bytes=size, unit=layer.name,
                    note="kept", costs={}, measured={},
                )
            )  # fmt: skip
            continue
        unit, place = by_layer[layer.name]
        choice = unit.choices[chosen[unit.name]]
        own = {name: cost for (of, name), cost in found.costs.costs.items() if of == layer.name}
        layers.append(
            AllocatedLayer(
                name=layer.name, kind=layer.kind, numbers=numbers, bytes=choice.rows[place].bytes_after, unit=unit.name,
                scheme=str(choice.rows[place].scheme) if choice.rows[place].scheme else FLOAT, costs=own,
                predicted=own.get(choice.name, 0.0), note=_refusals(unit),
                measured={name: cost for (of, name), cost in found.costs.measured.items() if of == layer.name},
            )
        )  # fmt: skip
    return layers


def _refusals(unit: Unit) -> str | None:
    """Return which candidates a unit cannot have, and why not the first of them."""
    if not unit.refused:
        return None
    return f"not {', '.join(unit.refused)}: {next(iter(unit.refused.values()))}"


def _pareto(found: Found) -> list[AllocationPoint]:
    task = found.task
    points = []
    curve = list(frontier(task.costs, task.bytes))
    step = max(1, math.ceil(len(curve) / _POINTS))
    sampled = [*curve[:-1:step], curve[-1]]
    labelled = [(BEST, own) for own in sampled] + _uniform(task.units, found.place.setting.candidates.names)
    for label, selection in labelled:
        size = round(selection.sum(task.bytes)) + found.fixed
        points.append(
            AllocationPoint(label=label, bytes=size, bits=found.bits(size), predicted=selection.sum(task.costs))
        )
    size = found.best.bytes + found.fixed
    measured = found.best.measured if found.measured else None
    points.append(
        AllocationPoint(
            label="allocation", bytes=size, bits=found.bits(size), predicted=found.best.predicted, measured=measured,
            chosen=True,
        )
    )  # fmt: skip
    return sorted(points, key=lambda point: (point.bytes, point.predicted))


def _uniform(units: Sequence[Unit], names: Sequence[str]) -> list[tuple[str, Selection]]:
    """Return the selections of one candidate for every unit, of those that all can have but such as stay float."""
    found = []
    free = [unit for unit in units if [own.name for own in unit.choices] != [FLOAT]]
    for name in names:
        if name == FLOAT or any(unit.choice(name) is None for unit in free):
            continue
        chosen = [unit.choice(name) or unit.choices[0] for unit in units]
        places = [unit.choices.index(own) for unit, own in zip(units, chosen, strict=True)]
        found.append((name, Selection(tuple(places))))
    return found


def _notes(found: Found) -> list[str]:
    """Return what fell back and what was left out."""
    notes = list(found.costs.notes)
    if not found.place.subject.runs.reuses and found.costs.measured:
        notes.append("single layers were measured by runs of the whole model: what comes before them is run again")
    floats = [unit.name for unit in found.task.units if [own.name for own in unit.choices] == [FLOAT]]
    if floats:
        first = next(unit for unit in found.task.units if unit.name == floats[0])
        notes.append(f"{several(floats)}: float, since no candidate fits; {_refusals(first)}")
    if found.place.setting.candidates.input:
        notes.append("inputs were float while single layers were scored, and rounded in the rounds")
    if not found.measured:
        notes.append("the whole model was not measured: the sum of costs knows nothing of how layers interact")
    return notes
