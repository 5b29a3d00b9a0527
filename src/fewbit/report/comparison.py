"""Several runs side by side: sizes and quality, what nothing beats in both, and where their layers differ."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fewbit.errors import RecipeError
from fewbit.part_names import whole_of
from fewbit.report.data import Report
from fewbit.report.drawing import error
from fewbit.report.reading import read_report
from fewbit.report.scatter import Point, Scatter, front, scatter


@dataclass(frozen=True, slots=True)
class Run:
    """A report and what to call it."""

    name: str
    report: Report

    @property
    def loss(self) -> float | None:
        """KL divergence in nats, or of other models the error of the output as a share; `None` where not measured."""
        after = self.report.after
        if after is not None and after.kl_divergence is not None:
            return after.kl_divergence
        return None if self.report.output_sqnr is None else error(self.report.output_sqnr)

    @property
    def speed(self) -> float | None:
        """How many times as fast as its own float model; `None` where only simulated or not measured."""
        seconds = self.report.forward_seconds
        return seconds[0] / seconds[1] if seconds and seconds[1] > 0 else None

    def to_dict(self) -> dict[str, Any]:
        """Return a row of a table; what is not known is `None`."""
        report, after = self.report, self.report.after
        return {
            "name": self.name,
            "model": report.model,
            "recipe": report.recipe,
            "bytes": report.bytes_after,
            "bits": report.bits,
            "kl_divergence": after.kl_divergence if after else None,
            "top1_agreement": after.top1_agreement if after else None,
            "perplexity": after.perplexity if after else None,
            "output_sqnr": report.output_sqnr,
            "speed": self.speed,
            "seconds": sum(report.seconds.values()) if report.seconds else None,
            "measured_on": report.text,
        }


@dataclass(frozen=True, slots=True)
class LayerDifference:
    """A layer in all runs; what one of them does not have is `None`."""

    name: str
    becomes: tuple[str | None, ...]
    bytes: tuple[int | None, ...]
    #: Error of its output, or of its weight where no run has that of outputs; a share.
    errors: tuple[float | None, ...]

    @property
    def spread(self) -> float:
        """How much more of it the worst run has lost than the best one; 0 where fewer than two know it."""
        known = [own for own in self.errors if own is not None and math.isfinite(own)]
        return max(known) - min(known) if len(known) > 1 else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """Runs in the order in which they were named."""

    runs: tuple[Run, ...]

    @property
    def best(self) -> set[str]:
        """The names of the runs that no other one beats in size and in quality."""
        return {own.label for own in front(self._points())}

    @property
    def loss(self) -> str:
        """What `Run.loss` is."""
        return "KL divergence, nats" if any(own.report.after for own in self.runs) else "error of the output"

    @property
    def by_outputs(self) -> bool:
        """Whether layers are compared by their outputs, not by their weights."""
        return any(layer.output_sqnr is not None for own in self.runs for layer in own.report.layers)

    @property
    def warnings(self) -> list[str]:
        """What makes figures of these runs incomparable."""
        found = []
        for what, told in (("models", [own.report.model for own in self.runs]), ("data", self._measured_on())):
            if len({*told}) > 1:
                listed = "; ".join(f"{own.name}: {text}" for own, text in zip(self.runs, told, strict=True))
                found.append(f"quality is that of different {what}: {listed}")
        return found

    def plot(self) -> Scatter | None:
        """Return the runs by size and loss."""
        return scatter(self._points())

    def differences(self) -> list[LayerDifference]:
        """Return every layer that some run quantizes, the one whose errors differ most first."""
        tables = [{layer.name: layer for layer in own.report.layers} for own in self.runs]
        names = dict.fromkeys(name for table in tables for name, layer in table.items() if not layer.kept)
        outputs, found = self.by_outputs, []
        for name in names:
            layers = [table.get(name) for table in tables]
            ratios = [None if own is None else own.output_sqnr if outputs else own.weight_sqnr for own in layers]
            found.append(
                LayerDifference(
                    name=name,
                    becomes=tuple(own.becomes if own else None for own in layers),
                    bytes=tuple(own.bytes_after if own else None for own in layers),
                    errors=tuple(None if ratio is None else error(ratio) for ratio in ratios),
                )
            )
        return sorted(found, key=lambda own: -own.spread)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON."""
        return {
            "runs": [{**own.to_dict(), "best": own.name in self.best} for own in self.runs],
            "layers": [
                {"name": own.name, "becomes": own.becomes, "bytes": own.bytes, "errors": own.errors}
                for own in self.differences()
            ],
            "warnings": self.warnings,
        }

    def _points(self) -> list[Point]:
        return [Point(own.name, own.report.bytes_after / 1e6, own.loss) for own in self.runs if own.loss is not None]

    def _measured_on(self) -> list[str]:
        """Return what quality was measured on, and how much of it."""
        reports = [own.report for own in self.runs]
        counts = [f", {own.after.predictions} predictions" if own.after else "" for own in reports]
        return [f"{own.text or 'nothing'}{count}" for own, count in zip(reports, counts, strict=True)]


def compare(paths: Sequence[str | Path]) -> Comparison:
    """Return the comparison of runs, by their `report.json` or where they were written.

    Raises:
        RecipeError: fewer than two.
        CheckpointError: one that has no report, or a damaged one.

    """
    if len(paths) < 2:
        raise RecipeError(f"{len(paths)} run{'s' if not paths else ''} cannot be compared; name at least two")
    reports = [read_report(Path(path)) for path in paths]
    return Comparison(tuple(Run(name, own) for name, own in zip(_names(paths), reports, strict=True)))


def _names(paths: Sequence[str | Path]) -> list[str]:
    """Return short names where these tell the runs apart, else the paths as they were given, numbered if need be.

    >>> _names(["a/w4", "b/w8/report.json", "net.onnx"]), _names(["a/w4", "b/w4"]), _names(["a", "a"])
    (['w4', 'w8', 'net'], ['a/w4', 'b/w4'], ['a (1)', 'a (2)'])
    """
    short = [_short(Path(path)) for path in paths]
    if len({*short}) == len(paths):
        return short
    given = [str(path) for path in paths]
    return given if len({*given}) == len(given) else [f"{own} ({n})" for n, own in enumerate(given, 1)]


def _short(path: Path) -> str:
    if path.name == "report.json":
        return path.resolve().parent.name
    return whole_of(path).name.removesuffix(".json").removesuffix(".report").removesuffix(".onnx").removesuffix(".gguf")
