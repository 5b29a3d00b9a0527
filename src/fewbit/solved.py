"""What layers are solved on, and what a solved layer is: its quantized form, and how that came about."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fewbit.algorithms.solution import Solution
from fewbit.evaluation.fidelity import fidelity
from fewbit.evaluation.level_histogram import LevelHistogram, level_histogram
from fewbit.execution.executor import Executor
from fewbit.execution.in_process import InProcess
from fewbit.float_bias import FloatBias
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces import Activations, Replacement
from fewbit.numerics.namespace import Array
from fewbit.statistics.partials import PART


@dataclass(frozen=True, slots=True, kw_only=True)
class Solved:
    """A layer's quantized form and how it came about."""

    replacement: Replacement
    #: How its input and output are rounded, and what corrections of its bias read: for solving it again.
    activations: Activations
    statistics: Mapping[str, Any]
    #: Its new bias; `None`: it keeps the one that it has, or has none.
    bias: IntegerBias | FloatBias | None = None
    #: SQNR in dB of the weight.
    weight_sqnr: float
    #: SQNR in dB that a tenth of its rows stays below, and the one that a tenth goes above; `None` without any weight.
    row_sqnr: tuple[float, float] | None
    #: How the float weights lie on the levels; `None` for a cast, with levels as many as floats of 16 bits, and where
    #: each output has levels of its own.
    histogram: LevelHistogram | None
    #: SQNR in dB of the layer's output on the calibration data, rounded to nearest and as solved.
    nearest_sqnr: float | None = None
    solved_sqnr: float | None = None
    #: What was added to the diagonal of the second moment, as a share of its mean.
    damping: float | None = None
    #: The loss of the block that it was trained in, at the start and at the end.
    block_losses: tuple[float, float] | None = None
    #: Why the inputs that reached it, an expert, are too few to train it on; `None`: they are not.
    too_few: str | None = None
    #: What the algorithm alone took; of training a share by its weights.
    seconds: float = 0.0
    #: Whether a correction has moved its bias.
    corrected: bool = False
    #: What fell back.
    remarks: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        weight: Array,
        solution: Solution,
        replacement: Replacement,
        activations: Activations,
        statistics: Mapping[str, Any] | None = None,
    ) -> Solved:
        """Return a layer with what its codes leave of the float `weight` (out, in)."""
        qtensor = solution.qtensor
        left = fidelity(weight, qtensor.dequantize())
        shown = qtensor.scheme.format.levels and qtensor.scheme.scaled
        return cls(
            replacement=replacement,
            activations=activations,
            statistics=statistics or {},
            weight_sqnr=left.sqnr,
            row_sqnr=left.rows,
            histogram=level_histogram(weight, qtensor) if shown else None,
            damping=solution.damping,
            remarks=solution.remarks,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Data:
    """Calibration batches, and whether the layers of a block are measured one after the other."""

    batches: Sequence[Any] = ()
    #: A batch that shows what flows where in the model; `None`: there is none.
    example: Any = None
    sequential: bool = True
    #: For the order in which samples are trained on.
    seed: int = 0
    #: Without such batches: what shows what the model computes, and tells nothing of its data.
    shown: Sequence[Any] = ()
    #: Statistics that need no gathering, by layer.
    known: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    #: The statistic of the output that fixes its range, by layer, where that needs no gathering.
    known_outputs: Mapping[str, Any] = field(default_factory=dict)
    #: Batches whose statistics are summed apart, before they are merged.
    part: int = PART
    #: Who solves layers and runs batches.
    executor: Executor = field(default_factory=InProcess)
