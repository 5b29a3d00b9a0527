"""The report as data: what every layer became and what it lost; `report.json` carries a schema version."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from fewbit.errors import CheckpointError, RecipeError
from fewbit.evaluation.level_histogram import LevelHistogram
from fewbit.evaluation.quality import Quality
from fewbit.evaluation.size import megabytes
from fewbit.report.allocation import AllocationReport
from fewbit.whole_file import write_whole

#: Version of the schema of `report.json`; raised when a field changes its meaning or goes away.
SCHEMA = 1
_PACKAGES = ("fewbit", "numpy", "torch", "transformers", "compressed-tensors", "safetensors", "onnx", "onnxruntime")


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that shape the result."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def this_machine() -> str:
    """Return system, processor architecture and number of cores."""
    import os

    return f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores"


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerReport:
    """What one layer became and lost."""

    name: str
    kind: str
    shape: tuple[int, int]
    #: Notation of the scheme, or `float`.
    becomes: str
    algorithm: str | None
    bytes_before: int
    bytes_after: int
    #: Notation that the recipe asked for, where `becomes` was adapted from it.
    asked: str | None = None
    #: SQNR in dB of the weight; `None` for a kept layer.
    weight_sqnr: float | None = None
    #: SQNR in dB that a tenth of the weight's rows stays below, and the one that a tenth goes above.
    row_sqnr: tuple[float, float] | None = None
    #: SQNR in dB of the layer's output on the float model's inputs; `None` where not measured.
    output_sqnr: float | None = None
    #: SQNR in dB of its output on the calibration data: rounded to nearest, and as it was solved.
    nearest_sqnr: float | None = None
    solved_sqnr: float | None = None
    #: What was added to the diagonal of its second moment, as a share of the mean.
    damping: float | None = None
    #: The loss of the block that it was trained in, at the start and at the end; `None` where none was.
    block_losses: tuple[float, float] | None = None
    #: What its algorithm took.
    seconds: float | None = None
    #: What it runs on here, and why not on something faster; `None` for a kept layer.
    kernel: str | None = None
    #: Whether that is there for being faster than the float layer; true of a kept one, which is that layer.
    fast: bool = True
    notes: tuple[str, ...] = ()
    #: What would have overflowed the cast that was asked for, for which it is kept.
    overflow: str | None = None
    #: What fell back.
    remarks: tuple[str, ...] = ()
    #: How its float weights lie on the levels; `None` for a kept layer and for a cast.
    histogram: LevelHistogram | None = None

    @property
    def kept(self) -> bool:
        """Whether its weight stays float."""
        return self.becomes == "float"

    @property
    def states(self) -> tuple[str, ...]:
        """What can be asked for: `kept`, or `quantized` and perhaps `adapted` and `fell back`."""
        if self.kept:
            return ("kept",)
        return "quantized", *(["adapted"] if self.asked else []), *(["fell back"] if self.remarks else [])


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run did and what it cost."""

    model: str
    recipe: str
    rules: tuple[str, ...]
    #: Type of float numbers and scales in files.
    storage_type: str
    #: Tensor bytes of the model stored as `storage_type`, and of the checkpoint.
    bytes_before: int
    bytes_after: int
    layers: tuple[LayerReport, ...]
    #: How the schemes of the layers were chosen; `None` where a recipe named them.
    allocation: AllocationReport | None = None
    #: What was changed to make the recipe fit.
    adaptations: tuple[str, ...] = ()
    #: What fell back, what was rounded besides the layers.
    remarks: tuple[str, ...] = ()
    #: What statistics were gathered on; `None` where no algorithm needed any.
    calibration: str | None = None
    #: Batches whose statistics were summed apart and merged in order; `None`: all at once, or there was no data.
    calibration_part: int | None = None
    #: Who solved layers and ran calibration batches.
    executor: str = "in process"
    #: What quality was measured on, and the results; `None` where nothing was.
    text: str | None = None
    before: Quality | None = None
    after: Quality | None = None
    #: SQNR in dB of the whole model's output, for models that are no language models.
    output_sqnr: float | None = None
    #: Wall-clock seconds by phase.
    seconds: dict[str, float] = field(default_factory=dict)
    #: The most bytes that the process had held by the end of each phase, without those of a GPU.
    peak_memory: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    #: The command that repeats the run; `None` from Python.
    command: str | None = None
    versions: dict[str, str] = field(default_factory=installed_versions)
    machine: str = field(default_factory=this_machine)

    @property
    def quantized(self) -> Sequence[LayerReport]:
        """The layers that got codes."""
        return [layer for layer in self.layers if not layer.kept]

    @property
    def kernels(self) -> dict[str, list[str]]:
        """What the quantized layers run on, and why not on something faster, with the names of the layers."""
        found: dict[str, list[str]] = {}
        for layer in self.quantized:
            found.setdefault(layer.kernel or "unknown", []).append(layer.name)
        return found

    def in_state(self, state: str) -> Sequence[LayerReport]:
        """Return the layers that are `kept`, `quantized`, `adapted`, or that `fell back`."""
        return [layer for layer in self.layers if state in layer.states]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite SQNR becomes the string `inf`.

        `levels` lists each set of levels once; histograms hold its place there.
        """
        data = plain(self)
        levels: list[list[float]] = []
        for layer in data["layers"]:
            if layer["histogram"]:
                own = layer["histogram"]["levels"]
                if own not in levels:
                    levels.append(own)
                layer["histogram"]["levels"] = levels.index(own)
        return {"schema": SCHEMA, **data, "levels": levels}

    def save(self, path: str | Path) -> Path:
        """Write the report as `.json` or `.html`, by the ending of `path`, and return the path."""
        path = Path(path)
        if path.suffix not in (".json", ".html"):
            raise RecipeError(f"a report is written as .json or .html, not {path.suffix!r}")
        try:
            write_whole(path, self.files()[f"report{path.suffix}"])
        except OSError as error:
            raise CheckpointError(f"cannot write the report {path}: {error.strerror}") from error
        return path

    def files(self) -> dict[str, bytes]:
        """Return `report.json` and `report.html` as bytes."""
        from fewbit.report.page import render

        return {"report.json": json_text(self.to_dict()).encode(), "report.html": render(self).encode()}

    def __str__(self) -> str:
        return "\n".join(f"{name:22} {value}" for name, value in self.summary())

    def summary(self) -> list[tuple[str, str]]:
        """Return what a person wants to know first, as (name, value) pairs."""
        ratio = self.bytes_before / max(self.bytes_after, 1)
        size = f"{megabytes(self.bytes_before)} as {self.storage_type} -> {megabytes(self.bytes_after)}"
        rows = [
            ("model", self.model),
            ("recipe", self.recipe),
            ("layers", f"{len(self.quantized)} quantized, {len(self.layers) - len(self.quantized)} float"),
            ("tensors", f"{size}, {ratio:.2f} times smaller"),
        ]
        rows += self.allocation.summary() if self.allocation else []
        if self.calibration:
            rows.append(("calibrated on", self.calibration))
        rows += [("executed by", self.executor)] if self.executor != "in process" else []
        if self.before and self.after:
            rows += [
                ("perplexity", f"{self.before.perplexity:.3f} -> {self.after.perplexity:.3f}"),
                ("mean KL divergence", f"{self.after.kl_divergence:.4f} nats"),
                ("top-1 agreement", f"{self.after.top1_agreement:.1%}"),
                ("measured on", f"{self.after.predictions} predictions, {self.text}"),
            ]
        if self.output_sqnr is not None:
            rows += [
                ("output SQNR", f"{self.output_sqnr:.2f} dB"),
                *([("measured on", self.text)] if self.text else []),
            ]
        if trained := [layer.block_losses for layer in self.layers if layer.block_losses]:
            before, after = (sum(pair[end] for pair in trained) / len(trained) for end in (0, 1))
            rows.append(("trained by block", f"{len(trained)} layers, mean loss {before:.4g} -> {after:.4g}"))
        if over := [layer for layer in self.layers if layer.overflow]:
            more = f", and {len(over) - 1} more" if len(over) > 1 else ""
            rows.append(("kept float", f"{over[0].name}: {over[0].overflow}{more}"))
        if fallen := self.in_state("fell back"):
            more = f", and {len(fallen) - 1} more" if len(fallen) > 1 else ""
            rows.append(("fell back", f"{fallen[0].name}: {fallen[0].remarks[0]}{more}"))
        if slow := [layer for layer in self.quantized if not layer.fast]:
            rows.append(("not faster here", f"{len(slow)} of {len(self.quantized)} quantized layers"))
        if self.seconds:
            parts = ", ".join(f"{phase} {seconds:.1f}" for phase, seconds in self.seconds.items())
            rows.append(("seconds", f"{sum(self.seconds.values()):.1f}: {parts}"))
        if self.peak_memory:
            rows.append(("peak memory", megabytes(max(self.peak_memory.values()))))
        return rows


def plain(value: Any) -> Any:
    """Return `value` fit for strict JSON: lists for tuples, strings for numbers that are not finite."""
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        if {*map(type, value)} <= {int, float} and math.isfinite(sum(value)):
            return list(value)  # as it is: histograms are long
        return [plain(item) for item in value]
    if is_dataclass(value):
        return {own.name: plain(getattr(value, own.name)) for own in fields(value)}
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value


def json_text(data: dict[str, Any]) -> str:
    """Return strict JSON for people: indented, but lists of numbers on one line.

    >>> json_text({"shape": (8, 64), "sqnr": float("inf")}).splitlines()
    ['{', '  "shape": [8, 64],', '  "sqnr": "inf"', '}']
    """
    text = json.dumps(plain(data), indent=2, allow_nan=False)
    # No string of JSON holds a line break, so that this finds lists only.
    return re.sub(r"\[\n\s+(-?\d[^\[\]{}\"]*?)\n\s+\]", lambda found: f"[{' '.join(found[1].split())}]", text) + "\n"
