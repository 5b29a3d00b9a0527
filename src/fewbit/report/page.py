"""The report as one self-contained HTML page, from `page.html` and what it includes, `page.css` and `page.js`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from fewbit.report.advice import advice
from fewbit.report.damage import by_damage
from fewbit.report.drawing import (
    HEIGHT,
    Bar,
    Scale,
    bar,
    codes_path,
    error,
    inputs_path,
    longest,
    own_labels,
    percent,
    scale_of,
    weights_path,
)
from fewbit.report.figures import Run, input_figures, weight_figures
from fewbit.report.heat_map import STEPS, heat_rows
from fewbit.report.scatter import Point, Scatter, scatter
from fewbit.report.template import assets, template

if TYPE_CHECKING:
    from fewbit.evaluation.input_profile import InputProfile
    from fewbit.evaluation.level_histogram import LevelHistogram
    from fewbit.report.allocation import AllocationReport
    from fewbit.report.data import Report
    from fewbit.report.layer_report import LayerReport

#: Layers that are named as the most damaged ones, and rows of the heat map before it is folded.
_WORST, _HEAT_ROWS = 12, 40


def render(report: Report) -> str:
    """Return the page; every value is escaped."""
    calibrated = any(layer.solved_sqnr is not None for layer in report.layers)
    whole, damage = longest(report.layers), by_damage(report.layers)
    levels = list(dict.fromkeys(own for layer in report.layers for own in _drawn_levels(layer)))
    scales = [scale_of(own) for own in levels]
    return template("page.html").render(
        **assets("page.css", "page.js"),
        report=report,
        bits=report.bits,
        kept=_kept(report),
        columns=[column for column in COLUMNS if calibrated or not column.calibrated],
        calibrated=calibrated,
        whole=whole,
        scales=scales,
        rows=[_row(place, layer, whole, levels, scales) for place, layer in enumerate(report.layers)],
        steps=advice(report),
        damage=damage,
        worst=_WORST,
        longest_damage=damage.longest,
        places={layer.name: place for place, layer in enumerate(report.layers)},
        error=error,
        share=percent,
        heat=heat_rows(report.layers),
        most_heat=_HEAT_ROWS,
        steps_of_heat=STEPS,
        counted=max((layer.inputs.counted for layer in report.layers if layer.inputs), default=0),
        allocation_plot=_allocation_plot(report.allocation) if report.allocation else None,
    )


@dataclass(frozen=True, slots=True)
class Column:
    """A column of the table of layers."""

    #: Class of its cells.
    style: str
    title: str
    #: Left out where nothing was calibrated.
    calibrated: bool = False


COLUMNS = (
    Column("name", "Layer"),
    Column("kind", "Kind"),
    Column("shape", "Out \N{MULTIPLICATION SIGN} in"),
    Column("becomes", "Becomes"),
    Column("by", "By"),
    Column("before", "Bytes before"),
    Column("after", "Bytes after"),
    Column("weight", "Weight SQNR, dB"),
    Column("output", "Output SQNR, dB"),
    Column("nearest", "SQNR nearest, dB", calibrated=True),
    Column("solved", "SQNR solved, dB", calibrated=True),
    Column("damping", "Damping", calibrated=True),
    Column("seconds", "Seconds", calibrated=True),
    Column("notes", "Notes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A layer and what is drawn of it; paths are empty where there is no histogram."""

    layer: LayerReport
    #: Where it is in the model.
    place: int
    #: Why it is kept, what it was adapted from.
    notes: tuple[str, ...]
    weight_bar: Bar | None
    output_bar: Bar | None
    #: Further facts as (name, value).
    facts: tuple[tuple[str, str], ...]
    #: Place of its axis among those of the page.
    scale: int = 0
    bins: int = 0
    height: int = HEIGHT
    weights: str = ""
    codes: str = ""
    weight_figures: Sequence[Run] = ()
    #: Of what goes into it: the area, the place of its axis, or labels of its own.
    inputs: str = ""
    input_scale: int = 0
    input_labels: tuple[tuple[str, str], ...] = ()
    input_figures: Sequence[Run] = ()


def _drawn_levels(layer: LayerReport) -> list[tuple[float, ...]]:
    """Return the sets of levels that drawings of a layer have."""
    given = layer.inputs.levels if layer.inputs else ()
    return [*([layer.histogram.levels] if layer.histogram else []), *([given] if given else [])]


def _row(
    number: int, layer: LayerReport, whole: float, levels: list[tuple[float, ...]], scales: Sequence[Scale]
) -> Row:
    own, given = layer.histogram, layer.inputs
    place = levels.index(own.levels) if own else 0
    return Row(
        place=number,
        layer=layer,
        notes=(*layer.notes, *([f"adapted from {layer.asked}"] if layer.asked else [])),
        weight_bar=bar(layer.weight_sqnr, whole, layer.row_sqnr) if layer.weight_sqnr is not None else None,
        output_bar=bar(layer.output_sqnr, whole) if layer.output_sqnr is not None else None,
        facts=tuple(_facts(layer)),
        scale=place,
        bins=scales[place].bins if own else 0,
        weights=weights_path(own) if own else "",
        codes=codes_path(own) if own else "",
        weight_figures=weight_figures(own) if own else (),
        inputs=inputs_path(given) if given else "",
        input_scale=levels.index(given.levels) if given and given.levels else 0,
        input_labels=own_labels(given) if given and not given.levels else (),
        input_figures=input_figures(given) if given else (),
    )


def _facts(layer: LayerReport) -> list[tuple[str, str]]:
    facts = [("Weights", f"{prod(layer.shape):,}")] if prod(layer.shape) else []
    if layer.bytes_after:
        facts.append(("Bits a weight", f"{8 * layer.bytes_after / max(prod(layer.shape), 1):.2f}"))
    if layer.kernel:
        facts.append(("Runs by", layer.kernel))
    if layer.weight_sqnr is not None:
        facts.append(("Weight error", f"{100 * error(layer.weight_sqnr):.3g} %"))
    if layer.row_sqnr:
        facts.append(("SQNR of most rows", f"{layer.row_sqnr[0]:.2f} to {layer.row_sqnr[1]:.2f} dB"))
    facts += _level_facts(layer.histogram) if layer.histogram else []
    return facts + (_input_facts(layer.inputs) if layer.inputs else [])


def _input_facts(given: InputProfile) -> list[tuple[str, str]]:
    channel, multiple = given.outliers[0]
    facts = [
        ("Inputs", f"{given.low:.3g} to {given.high:.3g}, {given.numbers:,} numbers"),
        ("Largest channel", f"{channel}, {multiple:.3g} times the median"),
    ]
    return facts + ([] if given.clipped is None else [("Inputs clipped", f"{100 * given.clipped:.2g} %")])


def _allocation_plot(found: AllocationReport) -> Scatter | None:
    """Return the models that could have been, measured where that was done, by their size."""
    return scatter(
        [
            Point(own.label, own.bytes / 1e6, own.predicted if own.measured is None else own.measured,
                  "chosen" if own.chosen else "predicted" if own.measured is None else "")
            for own in found.pareto
        ]
    )  # fmt: skip


def _level_facts(histogram: LevelHistogram) -> list[tuple[str, str]]:
    count = sum(histogram.weights)
    facts = [("Levels used", f"{histogram.used} of {len(histogram.levels)}")]
    if histogram.codes:
        most = max(histogram.codes)
        level = histogram.levels[histogram.codes.index(most)]
        facts.append(("Most used level", f"{level:.3g}, by {100 * most / count:.1f} % of the codes"))
    below, above = (f"{100 * part / count:.2g} %" for part in histogram.clipped)
    facts.append(("Clipped", f"{below} below, {above} above" if any(histogram.clipped) else "none"))
    least, median, greatest = (f"{scale:.3g}" for scale in histogram.scales)
    return [*facts, ("Scale", f"{least} to {greatest}, median {median}" if least != greatest else least)]


def _kept(report: Report) -> dict[str, list[str]]:
    """Return the names of kept layers by the reason."""
    found: dict[str, list[str]] = {}
    for layer in report.in_state("kept"):
        found.setdefault("; ".join(layer.notes) or "no reason given", []).append(layer.name)
    return found
