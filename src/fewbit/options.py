"""How a run is carried out: place, seed, progress, and who does the work."""

from __future__ import annotations

from dataclasses import dataclass, field

from fewbit.execution.executor import Place
from fewbit.interfaces import Progress, Silent


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How a run is carried out, as opposed to what becomes of the layers."""

    #: `auto` is the model's own place; else a torch device such as `cuda`.
    device: str = "auto"
    #: For the text that a model writes for its own calibration; recorded.
    seed: int = 0
    progress: Progress = field(default_factory=Silent)
    #: The command line to put into the report.
    command: str | None = None
    #: Who solves layers and runs calibration batches, to the same bits: `in-process`, `ray` or a `Ray`.
    executor: str | Place = "in-process"
