"""`fewbit imatrix`: an importance matrix, for llama-quantize or for `fewbit quantize --imatrix`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewbit.calibration import Calibration
from fewbit.checkpoints.new_file import require_free_file
from fewbit.cli.console import Terminal
from fewbit.cli.words import AsJson, CalibrationData, CalibrationLength, Device, Model, Overwrite, Quiet
from fewbit.errors import RecipeError


def imatrix(  # a command's options are its arguments
    model: Model,
    output: Annotated[Path, typer.Option("-o", "--output", help="File to write.", show_default=False)],
    calibration: CalibrationData = "self",
    samples: Annotated[int | None, typer.Option(help="Sequences of text, default 32.", min=1)] = None,
    calibration_length: CalibrationLength = None,
    overwrite: Overwrite = False,
    device: Device = "auto",
    seed: Annotated[int, typer.Option(help="For the text that the model writes.", min=0)] = 0,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Gather the mean squares of what goes into the layers of MODEL: a .gguf file, or a .dat in the older form."""
    if output.suffix not in (".gguf", ".dat"):
        raise RecipeError(f"an importance matrix is a .gguf file, or a .dat in the older form, not {output}")
    require_free_file(output, overwrite=overwrite)
    import fewbit as fb

    terminal = Terminal(quiet=quiet, as_json=as_json)
    matrix = fb.importance_matrix(
        model,
        calibration=Calibration(data=calibration, samples=samples, length=calibration_length),
        options=fb.Options(device=device, seed=seed, progress=terminal),
    )
    matrix.save(output, overwrite=overwrite)
    size = f"{matrix.chunks} x {matrix.chunk_size} tokens"
    terminal.result(
        f"written                {output}: {len(matrix.sums)} layers, {size}",
        {"output": str(output), "entries": len(matrix.sums), "chunks": matrix.chunks, "chunk_size": matrix.chunk_size},
    )
