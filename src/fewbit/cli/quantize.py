"""`fewbit quantize`: the main job."""

from __future__ import annotations

from pathlib import Path

import typer

from fewbit.calibration import Calibration
from fewbit.cli.allocation import Search
from fewbit.cli.chosen_recipe import Schemes, beside_search, choose_recipe
from fewbit.cli.console import Terminal
from fewbit.cli.dry_run import show_plan
from fewbit.cli.quantize_options import (
    Algorithm,
    DryRun,
    Equal,
    FloatType,
    Imatrix,
    InputScheme,
    Keep,
    Memory,
    Part,
    RecipeName,
    Resume,
    Rounds,
    Runtime,
    SampleCount,
    Seed,
    Sequential,
    TargetBits,
    TargetDivergence,
    TargetLatency,
    TargetSize,
    Weight,
    Written,
)
from fewbit.cli.run import Run, is_onnx
from fewbit.cli.samples import calibrating, made_of, measuring, require_used
from fewbit.cli.streaming import Streaming
from fewbit.cli.words import (
    Address,
    AsJson,
    BatchSize,
    Cache,
    CalibrationData,
    CalibrationLength,
    CandidateList,
    Data,
    Device,
    ExecutorName,
    Iterations,
    Layout,
    Model,
    Output,
    Overwrite,
    Preprocess,
    Quiet,
    SequenceLength,
    Sequences,
    Shape,
    ShardSize,
    Text,
    Workers,
)
from fewbit.errors import RecipeError
from fewbit.execution.executor import Place, parse_executor
from fewbit.result import is_file_name, target_name
from fewbit.statistics.partials import PART


def quantize(  # a command's options are its arguments
    context: typer.Context,
    model: Model,
    output: Output = None,
    recipe: RecipeName = None,
    weight: Weight = None,
    input_scheme: InputScheme = None,
    algorithm: Algorithm = None,
    keep: Keep = None,
    to: Layout = None,
    dtype: FloatType = "auto",
    text: Text = None,
    sequences: Sequences = 4,
    length: SequenceLength = 512,
    dry_run: DryRun = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    seed: Seed = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
    calibration: CalibrationData = "self",
    shape: Shape = None,
    iterations: Iterations = None,
    samples: SampleCount = None,
    data: Data = None,
    batch_size: BatchSize = None,
    preprocess: Preprocess = None,
    calibration_length: CalibrationLength = None,
    written: Written = 0,
    imatrix: Imatrix = None,
    sequential: Sequential = True,
    target_bits: TargetBits = None,
    runtime: Runtime = None,
    memory: Memory = None,
    executor: ExecutorName = "in-process",
    resume: Resume = False,
    shard_size: ShardSize = None,
    target_size: TargetSize = None,
    target_kl: TargetDivergence = None,
    target_latency: TargetLatency = None,
    candidates: CandidateList = None,
    equal: Equal = "auto",
    rounds: Rounds = None,
    cache: Cache = None,
    address: Address = None,
    workers: Workers = None,
    part: Part = PART,
) -> None:
    """Quantize MODEL, measure what it cost, and write a folder that other runtimes load."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    search = Search(
        bits=target_bits, size=target_size, divergence=target_kl, latency=target_latency, candidates=candidates,
        equal=equal, rounds=rounds, cache=cache, input=input_scheme, algorithm=algorithm, keep=tuple(keep or ()),
    )  # fmt: skip
    named = {"--recipe": recipe, "--weight": weight, "--imatrix": imatrix, "--dry-run": dry_run or None}
    schemes = Schemes(weight, input_scheme, algorithm)
    chosen = beside_search(named) if search.budget is not None else choose_recipe(recipe, schemes, keep or [])
    if imatrix is not None and calibration != "self":
        raise RecipeError("--imatrix and --calibration exclude each other: an importance matrix is gathered already")
    data_made = made_of(calibration, shape, preprocess, iterations)
    calibrated = calibrating(
        Calibration(
            data=data_made, samples=samples, length=calibration_length, written=written, sequential=sequential,
            part=part,
        ),
        batch_size, preprocess,
    )  # fmt: skip
    streaming = Streaming(memory, resume)
    if streaming.asked:
        elsewhere = None if executor == "in-process" else executor
        named = {"--text": text, "--data": data, "--imatrix": imatrix, "--runtime": runtime, "--executor": elsewhere}
        streaming.require_alone({**named, "--target-...": search.budget})
    if output is None and not dry_run:
        raise RecipeError("nowhere to write: give -o OUT, or --dry-run to see the plan only")
    goal = output or Path("out.onnx" if is_onnx(model) or runtime else "out")
    run = Run(
        model=model, recipe=chosen, output=goal, to=target_name(goal, to, runtime), dtype=dtype, text=text,
        sequences=sequences, length=length, overwrite=overwrite, device=device, seed=seed, command=context.obj,
        calibration=calibrated, evaluation=measuring(data, text, batch_size, preprocess), shard_size=shard_size,
        importance=imatrix, executor=chosen_executor(executor, address, workers),
    )  # fmt: skip
    if streaming.asked:
        streaming.carry_out(run, terminal, dry_run=dry_run)
    elif dry_run:
        show_plan(run, terminal)
    else:
        require_used(run.calibration, run.evaluation, {"--batch-size": batch_size, "--preprocess": preprocess})
        _carry_out(run, terminal, None if search.budget is None else search)


def _carry_out(run: Run, terminal: Terminal, search: Search | None) -> None:
    result, written = run.carry_out(terminal, search)
    beside = f", with {run.output.stem}.report.html beside it" if is_file_name(run.output) else ""
    terminal.result(
        f"{result.report}\nwritten                {written}{beside}",
        {**result.report.to_dict(), "output": str(written)},
    )


def chosen_executor(name: str, address: str | None, workers: int | None) -> Place:
    """Return who --executor, --address and --workers ask for."""
    options = {key: own for key, own in {"address": address, "workers": workers}.items() if own is not None}
    if options and name == "in-process":
        raise RecipeError(f"--{next(iter(options))} is for workers; add --executor ray, or leave it out")
    return parse_executor({"name": name, **options})
