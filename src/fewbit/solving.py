"""Solve every layer of a plan: those that need no data first, then block by block behind the quantized ones.

The layers of a block whose algorithm trains them together are solved one by one first, and then again as a block.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from math import prod
from typing import Any

from fewbit.algorithms.block import Block, BlockAlgorithm
from fewbit.algorithms.solution import Solution
from fewbit.biases import BATCHNORM, corrected, known_output, needs_bias, with_integer_bias
from fewbit.corrections import on_models
from fewbit.errors import FewbitError
from fewbit.execution.executor import CalibrationTask, Executor, Outcome, SolveTask, output_sqnr
from fewbit.execution.in_process import InProcess
from fewbit.float_bias import FloatBias
from fewbit.float_means import float_outputs, known_inputs
from fewbit.integer_bias import IntegerBias
from fewbit.interfaces import Activations, CalibratedPart, Frontend, Progress
from fewbit.numerics.namespace import Array
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan
from fewbit.ranges import OutputRange
from fewbit.rescaling import Rescaling
from fewbit.schemes.scheme import ScaleType, Scheme
from fewbit.shared_scales import SharedScales, under
from fewbit.solved import Data, Solved
from fewbit.static_ranges import activations_of, fix_outputs, output_statistic
from fewbit.statistics.mean import Mean


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
    run = _Run(model, frontend, made.storage_type, outputs, shared, rescaling, data.seed, known, data.executor)
    solved: dict[str, Solved] = {}
    try:
        # What waits inside of the calibration is let go of also when a layer cannot be solved.
        calibrated = partial(
            CalibrationTask, frontend=frontend, model=model, layers=[row.layer for row in made.rows],
            batches=data.batches, solved=solved, sequential=data.sequential, prepare=rescaling or None, part=data.part,
        )  # fmt: skip
        with closing(_tracked(rows, calibrated, progress, rescaling, data)) as tracked:
            for part in tracked:
                if part.again:
                    _train(part, rows, solved, run)
                    continue
                for done in _solutions([rows[layer.name] for layer in part.layers], part.statistics, run):
                    solved[done.replacement.layer.name] = done
                    done.replacement.install()
        fix_outputs(model, solved, rows, frontend, data)
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
    executor: Executor = field(default_factory=InProcess)


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
        statistics_of(row) or output_statistic(row) or _trains(row) for row in rows
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


def _tracked(
    rows: Mapping[str, PlanRow],
    calibrated: Callable[..., CalibrationTask],
    progress: Progress,
    rescaling: Rescaling | None,
    data: Data,
) -> Generator[CalibratedPart]:
    """Yield every layer with its statistics, parts of a block together; install them before asking for the next."""
    wanted = {name: () if name in data.known else statistics_of(row) for name, row in rows.items()}
    trained = {name for name, row in rows.items() if _trains(row)}
    # What is to be rescaled, or trained with others, has to wait for its turn in the walk.
    waiting = {name: names for name, names in wanted.items() if names or rescaling or name in trained}
    free = [row for name, row in rows.items() if name not in waiting]
    step = data.executor.at_once
    together = [[row.layer for row in free[start : start + step]] for start in range(0, len(free), step)]
    for layers in progress.track(together, "quantize") if free else ():
        yield CalibratedPart(tuple(layers), {layer.name: data.known.get(layer.name, {}) for layer in layers})
    if not waiting:
        return
    # As good as a sequence: it has a length and is gone through once.
    stages: Any = data.executor.calibrate(calibrated(wanted=waiting, trained=trained))
    for _ in progress.track(stages.gradients, "gradients") if stages.gradients else ():
        pass
    for stage in progress.track(stages, "calibrate and quantize"):
        yield from stage


def _solve(row: PlanRow, statistics: Mapping[str, Any], run: _Run) -> Solved:
    return next(_solutions([row], {row.layer.name: statistics}, run))


def _solutions(rows: Sequence[PlanRow], statistics: Mapping[str, Mapping[str, Any]], run: _Run) -> Iterator[Solved]:
    """Yield layers solved, in their order; install each before asking for the next."""
    given = [statistics.get(row.layer.name, {}) for row in rows]
    tasks = [_task(row, own, run) for row, own in zip(rows, given, strict=True)]
    with closing(run.executor.solve(tasks)) as outcomes:
        for row, own, outcome in zip(rows, given, outcomes, strict=True):
            yield _finished(row, outcome, own, run)


def _task(row: PlanRow, statistics: Mapping[str, Any], run: _Run) -> SolveTask:
    assert row.algorithm is not None

    def read() -> tuple[Array, Scheme]:
        weight = run.frontend.weight(run.model, row.layer)
        try:
            return weight, run.shared.scheme(row)
        except FewbitError as error:
            raise type(error)(f"{row.layer.name}: {error}") from error

    out, width = row.layer.shape
    # Without statistics rounding goes through the weight once; with them a column moves all columns behind it.
    cost = float(out * width * (width if statistics else 1))
    return SolveTask(row.layer.name, row.algorithm, statistics, read, cost)


def _finished(row: PlanRow, outcome: Outcome, statistics: Mapping[str, Any], run: _Run) -> Solved:
    assert row.scheme is not None
    try:
        activations = activations_of(row, statistics)
    except FewbitError as error:
        raise type(error)(f"{row.layer.name}: {error}") from error
    found = _settled(row, under(outcome.solution, row.scheme), (activations, statistics), run)
    solved = outcome.solved_sqnr
    if row.bias == "int32":  # for which codes may have been rounded anew
        weight = run.frontend.weight(run.model, row.layer)
        (solved,) = output_sqnr(weight, statistics, lambda: found.replacement.qtensor)
    few, nearest = _too_few(statistics) if row.layer.expert else None, outcome.nearest_sqnr
    return replace(found, seconds=outcome.seconds, nearest_sqnr=nearest, solved_sqnr=solved, too_few=few)


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
    return replace(Solved.of(weight, solution, replacement, activations, kept), corrected=moved, bias=bias)


def _train(part: CalibratedPart, rows: Mapping[str, PlanRow], solved: dict[str, Solved], run: _Run) -> None:
    """Solve the layers of a part again, those of one algorithm together."""
    alike: dict[BlockAlgorithm, list[str]] = {}
    for layer in part.layers:
        algorithm, own = rows[layer.name].algorithm, solved[layer.name]
        assert isinstance(algorithm, BlockAlgorithm)
        if own.too_few:
            remarks: tuple[str, ...] = (f"{own.too_few}: its start is kept, not trained",)
        else:
            remarks = part.remarks
            alike.setdefault(algorithm, []).append(layer.name)
        solved[layer.name] = replace(own, remarks=(*own.remarks, *remarks))
    for trainer, names in alike.items() if part.block else ():
        _train_alike(trainer, part, {name: rows[name] for name in names}, solved, run)


def _too_few(statistics: Mapping[str, Any]) -> str | None:
    """Return why the inputs that reached a layer are too few to train it on, or `None`."""
    return next((few for own in statistics.values() if (few := getattr(own, "too_few", None))), None)


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
    block = Block(
        forward=part.block.forward, together=part.block.together, targets=part.block.targets, weights=weights,
        starts=starts, row_weights=part.block.row_weights, curvature=part.block.curvature,
    )  # fmt: skip
    found = algorithm.solve_block(block, run.seed)
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
