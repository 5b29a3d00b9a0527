"""The report as data: what every layer became and what it lost; `report.json` carries a schema version."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import metadata
from math import prod
from pathlib import Path
from typing import Any

from fewbit.errors import CheckpointError, RecipeError
from fewbit.evaluation.overlap import Overlap
from fewbit.evaluation.quality import Quality
from fewbit.report.allocation import AllocationReport
from fewbit.report.layer_report import LayerReport
from fewbit.report.strict_json import json_text, listed
from fewbit.whole_file import write_whole

#: Version of the schema of `report.json`; raised when a field changes its meaning or goes away.
SCHEMA_VERSION = 2
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
    #: What the forwards on all of that took, of the float model and of the quantized one.
    forward_seconds: tuple[float, float] | None = None
    #: How much of the text for measuring was in that for calibration; `None` where one of them is no text.
    overlap: Overlap | None = None
    #: Wall-clock seconds by phase.
    seconds: dict[str, float] = field(default_factory=dict)
    #: The most bytes that the process had held by the end of each phase, without those of a GPU.
    peak_memory: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    #: The command that repeats the run; `None` from Python.
    command: str | None = None
    #: The call from Python, its arguments in words; `None` from the command line.
    call: str | None = None
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

    @property
    def bits(self) -> float | None:
        """Mean bits of a quantized weight, its share of scales and zero points included; `None` without any."""
        weights = sum(prod(layer.shape) for layer in self.quantized)
        return 8 * sum(layer.bytes_after for layer in self.quantized) / weights if weights else None

    def in_state(self, state: str) -> Sequence[LayerReport]:
        """Return the layers that are `kept`, `quantized`, `adapted`, or that `fell back`."""
        return [layer for layer in self.layers if state in layer.states]

    def to_dict(self) -> dict[str, Any]:
        """Return plain values for JSON; an infinite SQNR becomes the string `inf`.

        `levels` lists each set of levels once; histograms hold its place there.
        """
        return {"schema_version": SCHEMA_VERSION, "levels": [], **listed(self)}

    @classmethod
    def load(cls, path: str | Path) -> Report:
        """Return the report in a `.json` file, in an output folder, or beside an `.onnx` or `.gguf` file.

        Raises:
            CheckpointError: no such file, no report, or one of a newer fewbit.

        """
        from fewbit.report.reading import read_report

        return read_report(Path(path))

    def records(self) -> list[dict[str, Any]]:
        """Return a flat dict for each layer, as `pandas.DataFrame` takes them; what nobody measured is `None`."""
        from fewbit.report.records import record

        return [record(layer) for layer in self.layers]

    def _repr_html_(self) -> str:
        from fewbit.report.notebook import fragment

        return fragment(self)

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
        from fewbit.report.summary import summary_of

        return summary_of(self)
