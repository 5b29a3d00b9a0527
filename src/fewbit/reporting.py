"""The report of a run, put together from its plan, its solutions and what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fewbit.corrections import on_layers
from fewbit.evaluation.side_by_side import Measured
from fewbit.formats.scale_type import scale_fits
from fewbit.interfaces import Execution, Frontend, target_of
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan
from fewbit.report.data import Report
from fewbit.report.layer_report import LayerReport
from fewbit.solved import Solved


def report_of(
    made: Plan,
    solved: Mapping[str, Solved],
    measured: Measured,
    frontend: Frontend,
    model: Any,
    notes: Mapping[str, tuple[str, ...]],
) -> Report:
    """Return the report without what only the caller knows: time, memory, texts, seed and command.

    `notes` are further ones by layer, beside those of the plan.
    """
    runs = [_runs(row, made.target, frontend, model) for row in made.rows]
    layers = tuple(
        _layer_report(row, solved.get(row.layer.name), measured, own) for row, own in zip(made.rows, runs, strict=True)
    )
    return Report(
        model=made.model,
        recipe=made.recipe.name,
        rules=tuple(str(rule) for rule in made.recipe.rules),
        storage_type=made.storage_type,
        bytes_before=made.bytes_before,
        bytes_after=made.bytes_after,
        layers=tuple(replace(own, notes=(*own.notes, *notes.get(own.name, ()))) for own in layers),
        adaptations=made.adaptations,
        before=measured.before,
        after=measured.after,
        output_sqnr=measured.output_sqnr,
        forward_seconds=measured.seconds,
    )


def _runs(row: PlanRow, target: str | None, frontend: Frontend, model: Any) -> Execution | None:
    if not (row.scheme or row.input):
        return None
    if target is not None and target_of(target).holds_graph:
        return Execution(kernel=f"{target}; the report beside the file says on what", fast=True)
    return frontend.execution(model, row.layer, row.scheme, row.input)


def _layer_report(row: PlanRow, done: Solved | None, measured: Measured, runs: Execution | None) -> LayerReport:
    return LayerReport(
        name=row.layer.name,
        kind=row.layer.kind,
        shape=row.layer.shape,
        becomes=row.becomes,
        algorithm=row.algorithm.name if row.algorithm else None,
        bytes_before=row.bytes_before,
        bytes_after=row.bytes_after,
        asked=str(row.asked) if row.asked and str(row.asked) != str(row.scheme) else None,
        weight_sqnr=done.weight_sqnr if done else None,
        row_sqnr=done.row_sqnr if done else None,
        nearest_sqnr=done.nearest_sqnr if done else None,
        solved_sqnr=done.solved_sqnr if done else None,
        damping=done.damping if done else None,
        block_losses=done.block_losses if done else None,
        seconds=done.seconds if done else None,
        output_sqnr=(measured.layers or {}).get(row.layer.name),
        kernel=str(runs) if runs else None,
        fast=runs is None or runs.fast,
        notes=row.notes,
        overflow=row.overflow,
        remarks=_fallbacks(done) if done else (),
        histogram=done.histogram if done else None,
        inputs=measured.inputs.get(row.layer.name),
    )


def remarks_of(changed: int, solved: Mapping[str, Solved], made: Plan, *, idle: bool) -> tuple[str, ...]:
    """Return what the report remarks: idle data, rounded numbers, products, what fell back, what is no longer tied."""
    remarks = ["calibration data was not used: no algorithm of this recipe needs any"] if idle else []
    if changed:
        remarks.append(f"{changed:,} float numbers were rounded to {made.storage_type}, the type they are stored in")
    if made.rounded_products:
        count = len(made.rounded_products)
        remarks.append(f"operands of {count} products inside attention are rounded; softmax, norms and sums stay float")
    if any(row.corrections for row in made.rows):
        what = ", ".join(own.name for own in on_layers(made.recipe.corrections))
        count = sum(done.corrected for done in solved.values())
        moved = "the bias of 1 layer" if count == 1 else f"biases of {count} layers"
        remarks.append(f"correction {what}: {moved} moved, so that outputs keep their means")
    remarks += [f"{name}: {text}" for name, done in solved.items() for text in _fallbacks(done)]
    if made.unties:
        tied = [row.layer.name for row in made.rows if row.scheme and row.layer.tied]
        remarks.append(f"no longer tied: {', '.join(tied)}")
    return tuple(remarks)


def _fallbacks(done: Solved) -> tuple[str, ...]:
    qtensor = done.replacement.qtensor
    kind = qtensor.scheme.scale_type
    # Scales that are searched over spans fit their type, also those below 0.
    wide = int((~scale_fits(qtensor.scale, kind)).sum()) if kind and qtensor.scheme.span is None else 0
    return (*done.remarks, *([f"{wide} scales are too small or large for {kind} and stay float32"] if wide else []))
