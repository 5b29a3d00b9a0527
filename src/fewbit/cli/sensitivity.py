"""`fewbit sensitivity`: which layers suffer most under which schemes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewbit.calibration import Calibration
from fewbit.cli.console import Terminal
from fewbit.cli.samples import calibrating
from fewbit.cli.words import AsJson, BatchSize, Cache, CalibrationData, CandidateList, Device, Model, Preprocess, Quiet


def sensitivity(  # a command's options are its arguments
    model: Model,
    candidates: CandidateList = None,
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="weight_error, output_error, fisher (default), hessian_trace or kl_divergence; several, one by one.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[list[str] | None, typer.Option(help="Layers to leave out; a regular expression.")] = None,
    to: Annotated[str | None, typer.Option(help="Layout whose files say what layers may become.")] = None,
    dtype: Annotated[str, typer.Option(help="Type of scales: auto, float32, float16, bfloat16.")] = "auto",
    algorithm: Annotated[str | None, typer.Option(help="How codes are found, for kl_divergence.")] = None,
    calibration: CalibrationData = "self",
    samples: Annotated[int | None, typer.Option(help="Sequences of text, or samples of files.", min=1)] = None,
    calibration_length: Annotated[int | None, typer.Option(help="Tokens of each sequence.", min=2)] = None,
    batch_size: BatchSize = None,
    preprocess: Preprocess = None,
    cache: Cache = None,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="For the text that the model writes.", min=0)] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Score how much each layer of MODEL suffers under each candidate; on a few batches, the model stays as it is."""
    import fewbit as fb

    terminal = Terminal(quiet=quiet, as_json=as_json)
    data = Calibration(data=calibration, samples=samples or 1 if calibration == "self" else samples,
                       length=calibration_length)  # fmt: skip
    found = fb.sensitivity(
        model,
        candidates,
        metrics=metric or ["fisher"],
        to=to,
        dtype=dtype,
        calibration=calibrating(data, batch_size, preprocess),
        algorithm=algorithm,
        keep=keep or [],
        cache=Path(cache) if cache else None,
        options=fb.Options(device=device, seed=seed, progress=terminal),
    )
    terminal.result(
        str(found),
        {
            "model": model, "metrics": list(found.metrics), "candidates": list(found.candidates),
            "measured_on": found.measured_on, "scores": found.records(),
        },
    )  # fmt: skip
