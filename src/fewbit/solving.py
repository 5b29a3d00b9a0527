"""Solve every layer of a plan: those that need no data first, then block by block behind the quantized ones.

The layers of a block whose algorithm trains them together are solved one by one first, and then again as a block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

from fewbit.activation import Activation
from fewbit.algorithms.block import Block, BlockAlgorithm
from fewbit.algorithms.solution import Solution
from fewbit.biases import BATCHNORM, corrected, known_output, needs_bias, with_integer_bias
from fewbit.corrections import on_models
from fewbit.errors import CalibrationError, FewbitError
from fewbit.evaluation.fidelity import decibels, output_power
from fewbit.float_bias import FloatBias
from fewbit.float_means import float_outputs, known_inputs
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces import Activations, CalibratedPart, CalibrationRun, Frontend, Progress
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan
from fewbit.qtensor import quantize
from fewbit.ranges import OutputRange
from fewbit.rescaling import Rescaling
from fewbit.schemes.scheme import ScaleType
from fewbit.shared_scales import SharedScales, under
from fewbit.solved import Data, Solved
from fewbit.statistics.grouped_moment import GroupedMoment
from fewbit.statistics.mean import Mean
from fewbit.statistics.second_moment import SecondMoment

#: Why a range cannot be fixed.
UNREACHED = "no calibration input reached it, so it has no range; give other batches, or keep it"


def solve(
    model: Any, made: Plan, frontend: Frontend, data: Data, progress: Progress, rescaling: Rescaling | None = None
) -> dict[str, Solved]:
    """Return each layer of the plan solved, in the plan's order; the float forms are installed again at the end.

    `rescaling` is given each block before its layers are measured, and knows what BatchNorms tell.
    """
    rows = {row.layer.name: row for row in made.rows if row.scheme}
    shared = SharedScales(made.rows, partial(frontend.weight, model))
    outputs = float_outputs(model, rows, frontend, data)
    known = known_inputs(model, rows, frontend, data, rescaling.known if rescaling is not None else {})
    run = _Run(model, frontend, made.storage_type, outputs, shared, rescaling, data.seed, known)
    solved: dict[str, Solved] = {}
    try:
        # What waits inside of the calibration is let go of also when a layer cannot be solved.
        calibrated = partial(
            frontend.calibrate, model, [row.layer for row in made.rows],
            batches=data.batches, sequential=data.sequential, prepare=rescaling or None,
        )  # fmt: skip
        with closing(_tracked(rows, calibrated, progress, rescaling, data.known)) as tracked:
            for part in tracked:
                if part.again:
                    _train(part, rows, solved, run)
                    continue
                for layer in part.layers:
                    solved[layer.name] = _solve(rows[layer.name], part.statistics.get(layer.name, {}), run)
                    solved[layer.name].replacement.install()
        _fix_outputs(model, solved, rows, frontend, data)
    finally:
        for done in solved.values():
            done.replacement.restore()
    return {name: solved[name] for name in rows}


@dataclass(frozen=True, slots=True)
class _Run:
    """What the layers of a run are solved with."""

    model: Any
    frontend: Frontend
    storage_type: ScaleType
    #: Statistics by name of the outputs that layers have in the float model, as corrections want them.
    outputs: Mapping[str, Mapping[str, Any]]
    #: The schemes of layers that share a global scale.
    shared: SharedScales
    #: What has divided some of them since.
    rescaling: Rescaling | None = None
    seed: int = 0
    #: Means of what layers are given in the float model, as BatchNorms tell them.
    known: Mapping[str, Mean] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Solver:
    """Solves the layers of a plan as they come, for whoever walks through the model himself."""

    rows: Mapping[str, PlanRow]
    run: _Run

    @classmethod
    def of(cls, model: Any, made: Plan, frontend: Frontend, shared: SharedScales, seed: int) -> Solver:
        """Return what solves the quantized layers of `made`, which corrects no biases."""
        rows = {row.layer.name: row for row in made.rows if row.scheme}
        return cls(rows, _Run(model, frontend, made.storage_type, {}, shared, seed=seed))

    def __call__(self, layer: str, statistics: Mapping[str, Any]) -> Solved:
        """Return a layer solved; its float form is installed."""
        return _solve(self.rows[layer], statistics, self.run)


def needs_data(made: Plan) -> bool:
    """Whether algorithms, ranges or corrections ask for data, and no importance matrix is in its place."""
    rows = made.rows if made.importance is None else ()
    return bool(rows and on_models(made.recipe.corrections)) or any(
        statistics_of(row) or _output_statistic(row) or _trains(row) for row in rows
    )


def _trains(row: PlanRow) -> bool:
    """Whether the layer is trained together with others of its block."""
    return row.scheme is not None and isinstance(row.algorithm, BlockAlgorithm)


def statistics_of(row: PlanRow) -> tuple[str, ...]:
    """Return what has to be known of the layer's input: for its algorithm, its ranges, and that of a static input."""
    names = [*row.algorithm.statistics] if row.algorithm else []
    if row.scheme and isinstance(row.scheme.ranging, OutputRange):
        names.append(row.scheme.ranging.input_statistic)
    names += [correction.statistic for correction in row.corrections if correction.statistic]
    if row.input and row.input.static and row.input.ranging.statistic:
        names.append(row.input.ranging.statistic)
    return tuple(dict.fromkeys(names))


def _output_statistic(row: PlanRow) -> str | None:
    return row.output.ranging.statistic if row.output and row.output.static else None


def _fix_outputs(
    model: Any, solved: Mapping[str, Solved], rows: Mapping[str, PlanRow], frontend: Frontend, data: Data
) -> None:
    """Fix the static ranges of outputs, by what the quantized layers put out before any of those is rounded."""
    fixed = {name: row.output for name, row in rows.items() if row.output and row.output.static}
    wanted = {name: statistic for name in fixed if (statistic := _output_statistic(rows[name]))}
    found = frontend.output_statistics(model, wanted, data.batches) if wanted else {}
    for name, scheme in fixed.items():
        if name in wanted and name not in found:
            raise CalibrationError(f"{name}: {UNREACHED}")
        solved[name].replacement.fix_output(Activation.calibrated(scheme, found.get(name)))


def _tracked(
    rows: Mapping[str, PlanRow],
    calibrated: Callable[..., CalibrationRun],
    progress: Progress,
    rescaling: Rescaling | None,
    known: Mapping[str, Mapping[str, Any]],
) -> Generator[CalibratedPart]:
    """Yield every layer with its statistics, parts of a block together; install them before asking for the next."""
    wanted = {name: () if name in known else statistics_of(row) for name, row in rows.items()}
    trained = {name for name, row in rows.items() if _trains(row)}
    # What is to be rescaled, or trained with others, has to wait for its turn in the walk.
    waiting = {name: names for name, names in wanted.items() if names or rescaling or name in trained}
    free = [row for name, row in rows.items() if name not in waiting]
    for row in progress.track(free, "quantize") if free else ():
        yield CalibratedPart((row.layer,), {row.layer.name: known.get(row.layer.name, {})})
    if not waiting:
        return
    # As good as a sequence: it has a length and is gone through once.
    stages: Any = calibrated(wanted=waiting, trained=trained)
    for _ in progress.track(stages.gradients, "gradients") if stages.gradients else ():
        pass
    for stage in progress.track(stages, "calibrate and quantize"):
        yield from stage


def _solve(row: PlanRow, statistics: Mapping[str, Any], run: _Run) -> Solved:
    assert row.scheme is not None
    assert row.algorithm is not None
    weight = run.frontend.weight(run.model, row.layer)
    started = time.perf_counter()
    try:
        scheme = run.shared.scheme(row)
        solution = under(row.algorithm(weight, statistics, scheme), row.scheme)
        seconds = time.perf_counter() - started
        activations = _activations(row, statistics)
    except FewbitError as error:
        raise type(error)(f"{row.layer.name}: {error}") from error
    found = replace(_settled(row, solution, (activations, statistics), run), seconds=seconds)
    seen = next((own for own in statistics.values() if isinstance(own, SecondMoment | GroupedMoment)), None)
    if seen is None or not seen.count:
        return found
    values, moment = found.replacement.qtensor.dequantize(), seen.result()
    signal = output_power(weight, moment)
    nearest = decibels(signal, output_power(quantize(weight, scheme).dequantize() - weight, moment))
    return replace(found, nearest_sqnr=nearest, solved_sqnr=decibels(signal, output_power(values - weight, moment)))


def _settled(row: PlanRow, solution: Solution, given: tuple[Activations, Mapping[str, Any]], run: _Run) -> Solved:
    """Return the layer with this weight, its bias with it; the float form is installed."""
    assert row.scheme is not None
    activations, statistics = given
    weight = run.frontend.weight(run.model, row.layer)
    try:
        solution, bias, moved = _bias(row, solution, activations, statistics, run)
    except FewbitError as error:
        raise type(error)(f"{row.layer.name}: {error}") from error
    read = {correction.statistic for correction in row.corrections}
    kept = {name: own for name, own in statistics.items() if name in read}
    replacement = run.frontend.replacement(run.model, row.layer, solution.qtensor, activations, bias)
    return replace(Solved.of(weight, solution, replacement, activations, kept), corrected=moved)


def _train(part: CalibratedPart, rows: Mapping[str, PlanRow], solved: dict[str, Solved], run: _Run) -> None:
    """Solve the layers of a part again, those of one algorithm together."""
    alike: dict[BlockAlgorithm, list[str]] = {}
    for layer in part.layers:
        algorithm = rows[layer.name].algorithm
        assert isinstance(algorithm, BlockAlgorithm)
        alike.setdefault(algorithm, []).append(layer.name)
        own = solved[layer.name]
        solved[layer.name] = replace(own, remarks=(*own.remarks, *part.remarks))
    for trainer, names in alike.items() if part.block else ():
        _train_alike(trainer, part, {name: rows[name] for name in names}, solved, run)


def _train_alike(
    algorithm: BlockAlgorithm,
    part: CalibratedPart,
    rows: Mapping[str, PlanRow],
    solved: dict[str, Solved],
    run: _Run,
) -> None:
    """Solve the layers of `rows` again; they are installed before and after."""
    assert part.block is not None
    weights = {}
    for name, row in rows.items():
        solved[name].replacement.restore()
        weights[name] = run.frontend.weight(run.model, row.layer)
        solved[name].replacement.install()
    starts = {name: solved[name].replacement.qtensor for name in rows}
    started = time.perf_counter()
    found = algorithm.solve_block(
        Block(forward=part.block.forward, targets=part.block.targets, weights=weights, starts=starts), run.seed
    )
    seconds = time.perf_counter() - started
    total = sum(prod(weight.shape) for weight in weights.values())
    for name, row in rows.items():
        before = solved[name]
        before.replacement.restore()
        solution = Solution(found.qtensors[name], before.damping, (*before.remarks, *found.remarks.get(name, ())))
        after = _settled(row, solution, (before.activations, before.statistics), run)
        taken = before.seconds + seconds * prod(weights[name].shape) / total
        solved[name] = replace(after, block_losses=found.losses, seconds=taken)
        after.replacement.install()


def _bias(
    row: PlanRow, solution: Solution, activations: Activations, statistics: Mapping[str, Any], run: _Run
) -> tuple[Solution, IntegerBias | FloatBias | None, bool]:
    """Return the solution, what the bias of the layer becomes with it, and whether a correction moved that."""
    if not needs_bias(row):
        return solution, None, False
    own, seen = run.frontend.bias(run.model, row.layer), run.outputs.get(row.layer.name, {})
    wanted = run.rescaling.outputs(row.layer.name, seen) if run.rescaling is not None else seen
    known = _known_means(row, own, run)
    bias, remarks = corrected(row, solution, {**statistics, BATCHNORM: known[0]}, {**wanted, BATCHNORM: known[1]})
    solution = replace(solution, remarks=(*solution.remarks, *remarks))
    if row.bias == "int32":
        weight = run.frontend.weight(run.model, row.layer)
        return *with_integer_bias(solution, weight, own if bias is None else bias, activations), bias is not None
    return solution, None if bias is None else FloatBias.stored_as(bias, run.storage_type), bias is not None


def _known_means(row: PlanRow, bias: Any, run: _Run) -> tuple[Mean | None, Mean | None]:
    """Return what BatchNorms tell of the means of a layer's input and, by it, of its float output."""
    given = run.known.get(row.layer.name)
    if given is None:
        return None, None
    given = run.rescaling.inputs(row.layer.name, given) if run.rescaling is not None else given
    return given, known_output(run.frontend.weight(run.model, row.layer), bias, given)


def _activations(row: PlanRow, statistics: Mapping[str, Any]) -> Activations:
    """Return how input and output are rounded; a static range comes from its statistic.

    Raises:
        CalibrationError: no calibration input reached the layer.

    """
    output = Activation(scheme=row.output) if row.output and not row.output.static else None
    if row.input is None or not row.input.static:
        return Activations(input=Activation(scheme=row.input) if row.input else None, output=output)
    name = row.input.ranging.statistic
    if name is not None and name not in statistics:
        raise CalibrationError(UNREACHED)
    return Activations(input=Activation.calibrated(row.input, statistics.get(name) if name else None), output=output)
