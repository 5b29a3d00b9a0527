"""`fewbit quantize`: the main job."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewbit.byte_size import byte_size
from fewbit.calibration import Calibration
from fewbit.cli.allocation import Search
from fewbit.cli.console import Terminal
from fewbit.cli.run import Run, is_onnx
from fewbit.cli.samples import calibrating, made_of, measuring, require_used
from fewbit.cli.streaming import require_streamed, streamed
from fewbit.cli.words import (
    Address,
    AsJson,
    BatchSize,
    Cache,
    CalibrationData,
    CandidateList,
    Data,
    Device,
    ExecutorName,
    Iterations,
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

if TYPE_CHECKING:
    from fewbit.recipe import Recipe


def quantize(  # a command's options are its arguments
    context: typer.Context,
    model: Model,
    output: Output = None,
    recipe: Annotated[str | None, typer.Option(help="A preset (w4a16, ...) or a .toml file. Default: w4a16.")] = None,
    weight: Annotated[str | None, typer.Option(help='Scheme of all linear layers instead, e.g. "int4 g64".')] = None,
    input_scheme: Annotated[
        str | None, typer.Option("--input", help='Scheme of their inputs, with --weight, e.g. "int8" or "int8 static".')
    ] = None,
    algorithm: Annotated[
        str | None,
        typer.Option(help="How codes are found, with --weight: nearest, gptq, hqq, autoround, adaround, brecq."),
    ] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Layers that stay float; a regular expression.")] = None,
    to: Annotated[str | None, typer.Option(help="Layout of the output. Default: compressed-tensors.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of floats and scales: auto, float32, float16, bfloat16.")] = "auto",
    text: Text = None,
    sequences: Sequences = 4,
    length: SequenceLength = 512,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and every problem; do nothing.")] = False,
    overwrite: Overwrite = False,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="Recorded in the report.", min=0)] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
    calibration: CalibrationData = "self",
    shape: Shape = None,
    iterations: Iterations = None,
    samples: Annotated[
        int | None,
        typer.Option(help="What to calibrate with: 32 sequences, 512 samples of files, 64 made images.", min=1),
    ] = None,
    data: Data = None,
    batch_size: BatchSize = None,
    preprocess: Preprocess = None,
    calibration_length: Annotated[
        int | None, typer.Option(help="Tokens of each; default: 256 of its own text, 512 of a file.", min=2)
    ] = None,
    imatrix: Annotated[
        Path | None,
        typer.Option(
            help="An importance matrix instead of calibration: a .gguf file of `fewbit imatrix` or llama-imatrix.",
            show_default=False,
        ),
    ] = None,
    sequential: Annotated[
        bool,
        typer.Option(
            help="Calibrate the layers of a block one after the other; all at once takes longer and less memory."
        ),
    ] = True,
    target_bits: Annotated[
        float | None, typer.Option(help="Choose schemes by layer: stored bits of a weight on average.", min=0.1)
    ] = None,
    runtime: Annotated[
        str | None,
        typer.Option(help="Runtime that an .onnx output is for: ort-cpu (default), tensorrt, migraphx, openvino."),
    ] = None,
    memory: Annotated[
        str | None,
        typer.Option(
            help="Read a folder block by block within this much memory, such as 8GB; it writes no text of its own.",
            show_default=False,
        ),
    ] = None,
    executor: ExecutorName = "in-process",
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Read a folder block by block, and go on with what OUT.partial holds, if anything."
        ),
    ] = False,
    shard_size: ShardSize = None,
    target_size: Annotated[
        str | None, typer.Option(help="Choose schemes by layer under a size of all tensors, such as 300MB.")
    ] = None,
    target_kl: Annotated[
        float | None,
        typer.Option(
            help="Choose schemes by layer: the smallest model that diverges at most so far, in nats a token.", min=0.0
        ),
    ] = None,
    target_latency: Annotated[
        str | None, typer.Option(help="Choose schemes by layer under a time of a run, such as 20ms.")
    ] = None,
    candidates: CandidateList = None,
    equal: Annotated[
        str, typer.Option(help="Layers that get the same, with --target-...: auto, inputs, blocks, none.")
    ] = "auto",
    rounds: Annotated[
        int | None, typer.Option(help="How many models are quantized and measured in the search, default 3.", min=0)
    ] = None,
    cache: Cache = None,
    address: Address = None,
    workers: Workers = None,
    part: Annotated[
        int, typer.Option(help="Calibration batches whose statistics are summed apart; workers share parts.", min=1)
    ] = PART,
) -> None:
    """Quantize MODEL, measure what it cost, and write a folder that other runtimes load."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    search = Search(
        bits=target_bits, size=target_size, divergence=target_kl, latency=target_latency, candidates=candidates,
        equal=equal, rounds=rounds, cache=cache, input=input_scheme, algorithm=algorithm, keep=tuple(keep or ()),
    )  # fmt: skip
    searches = search.budget is not None
    named = {"--recipe": recipe, "--weight": weight, "--imatrix": imatrix, "--dry-run": dry_run or None}
    schemes = Schemes(weight, input_scheme, algorithm)
    chosen = beside_search(named) if searches else choose_recipe(recipe, schemes, keep or [])
    usual = Path("out.onnx" if is_onnx(model) or runtime else "out")
    target = target_name(output or usual, to, runtime)
    if imatrix is not None and calibration != "self":
        raise RecipeError("--imatrix and --calibration exclude each other: an importance matrix is gathered already")
    data_made = made_of(calibration, shape, preprocess, iterations)
    calibrated = calibrating(
        Calibration(data=data_made, samples=samples, length=calibration_length, sequential=sequential, part=part),
        batch_size, preprocess,
    )  # fmt: skip
    if memory is not None or resume:
        from fewbit.folder_run import FolderRun
        from fewbit.options import Options

        elsewhere = None if executor == "in-process" else executor
        named = {"--text": text, "--data": data, "--imatrix": imatrix, "--runtime": runtime, "--executor": elsewhere}
        require_streamed({**named, "--target-...": search.budget})
        asked = FolderRun(
            model=model, output=output or usual, recipe=chosen, to=target, dtype=dtype, calibration=calibrated,
            memory=None if memory is None else byte_size(memory), resume=resume, overwrite=overwrite,
            shard_bytes=None if shard_size is None else byte_size(shard_size),
            options=Options(device=device, seed=seed, progress=terminal, command=context.obj),
        )  # fmt: skip
        streamed(asked, terminal, dry_run=dry_run, named=output is not None)
        return
    if dry_run:
        show_plan(terminal, model, chosen, to=target, dtype=dtype, importance=imatrix, calibration=data_made)
        return
    if output is None:
        raise RecipeError("nowhere to write: give -o OUT, or --dry-run to see the plan only")
    run = Run(
        model=model, recipe=chosen, output=output, to=target, dtype=dtype, text=text, sequences=sequences,
        length=length, overwrite=overwrite, device=device, seed=seed, command=context.obj, calibration=calibrated,
        evaluation=measuring(data, text, batch_size, preprocess), shard_size=shard_size, importance=imatrix,
        executor=chosen_executor(executor, address, workers),
    )  # fmt: skip
    require_used(run.calibration, run.evaluation, {"--batch-size": batch_size, "--preprocess": preprocess})
    result, written = run.carry_out(terminal, search if searches else None)
    beside = f", with {output.stem}.report.html beside it" if is_file_name(output) else ""
    terminal.result(
        f"{result.report}\nwritten                {written}{beside}",
        {**result.report.to_dict(), "output": str(written)},
    )


@dataclass(frozen=True)
class Schemes:
    """What is asked of all linear layers instead of a recipe."""

    weight: str | None = None
    input: str | None = None
    algorithm: str | None = None


def choose_recipe(recipe: str | None, schemes: Schemes, keep: list[str]) -> Recipe:
    """Return the recipe that --recipe or --weight, --input, --algorithm and --keep ask for."""
    import fewbit as fb
    from fewbit.presets import parse_recipe

    if recipe is not None and schemes != Schemes():
        raise RecipeError(
            "--recipe and --weight (or --input, --algorithm) exclude each other; write the scheme into the recipe"
        )
    kept = [fb.keep(pattern) for pattern in keep]
    if schemes.weight is not None:
        rule = fb.Rule(kind="linear", weight=schemes.weight, input=schemes.input, algorithm=schemes.algorithm)
        name = f"{schemes.weight}, input {schemes.input}" if schemes.input else schemes.weight
        return fb.Recipe([*kept, rule], name=name)
    if schemes.algorithm is not None:
        raise RecipeError('--algorithm needs --weight, e.g. --weight "int4 g64"; presets bring their own')
    if schemes.input is not None:
        raise RecipeError('--input needs --weight, e.g. --weight "int8"; presets such as w8a8 bring their own')
    base = parse_recipe(recipe or "w4a16")
    if not kept:
        return base
    return fb.Recipe(
        [*kept, *base.rules], transforms=base.transforms, name=base.name, adapts=base.adapts, mixture=base.mixture
    )


def chosen_executor(name: str, address: str | None, workers: int | None) -> Place:
    """Return who --executor, --address and --workers ask for."""
    options = {key: own for key, own in {"address": address, "workers": workers}.items() if own is not None}
    if options and name == "in-process":
        raise RecipeError(f"--{next(iter(options))} is for workers; add --executor ray, or leave it out")
    return parse_executor({"name": name, **options})


def show_plan(  # all that is said of a plan
    terminal: Terminal,
    model: str,
    recipe: Recipe,
    *,
    to: str,
    dtype: str,
    importance: Path | None = None,
    calibration: Any = None,
) -> None:
    """Print the plan; raise its problems, so that the exit code tells."""
    with terminal.phase("plan"):
        import fewbit as fb

        given = calibration if importance is None else None
        made = fb.plan(model, recipe, to=to, dtype=dtype, importance=importance, calibration=given)
    data = {
        "model": made.model,
        "recipe": made.recipe.name,
        "storage_type": made.storage_type,
        "bytes_before": made.bytes_before,
        "bytes_after": made.bytes_after,
        "layers": [
            {"name": row.layer.name, "becomes": row.becomes, "bytes_before": row.bytes_before,
             "bytes_after": row.bytes_after, "notes": list(row.notes)}
            for row in made.rows
        ],
        "adaptations": list(made.adaptations),
        "hints": list(made.hints),
        "problems": list(made.problems),
    }  # fmt: skip
    terminal.result(str(made), data)
    made.require_sound()


def beside_search(named: Mapping[str, object]) -> Recipe:
    """Return what stands for the recipe until a search has made one.

    Raises:
        RecipeError: an option that names schemes, or takes the place of data, beside a budget.

    """
    for name, value in named.items():
        if value is not None:
            raise RecipeError(f"{name} and a budget (--target-bits, ...) exclude each other: a search makes the recipe")
    return choose_recipe(None, Schemes(), [])
