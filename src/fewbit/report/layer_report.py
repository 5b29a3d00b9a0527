"""What one layer became, what it lost, and what it was given."""

from __future__ import annotations

from dataclasses import dataclass

from fewbit.evaluation.input_profile import InputProfile
from fewbit.evaluation.level_histogram import LevelHistogram


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
    #: What went into it in the first batch of the evaluation; `None` where nobody looked.
    inputs: InputProfile | None = None

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
