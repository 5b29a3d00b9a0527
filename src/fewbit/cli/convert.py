"""`fewbit convert`: from one layout of quantized weights to another."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from fewbit.cli.console import Terminal
from fewbit.cli.words import AsJson, Overwrite, Quiet, ShardSize


def convert(
    model: Annotated[
        str, typer.Argument(help="A folder (compressed-tensors, GPTQ, AWQ) or .gguf file.", show_default=False)
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder or .gguf file to write.", show_default=False)],
    to: Annotated[
        str | None,
        typer.Option(help="Layout: compressed-tensors, gptq, awq, gguf; left out: by the name of the output."),
    ] = None,
    lossy: Annotated[
        bool,
        typer.Option("--lossy", help="Round anew where the layout does not hold the values; say what it cost."),
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Type of scales where the layout leaves it open: auto, float32, float16, bfloat16.")
    ] = "auto",
    shard_size: ShardSize = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write quantized MODEL in another layout, read it back, and compare every weight bit by bit."""
    import fewbit as fb
    from fewbit.interfaces import ONE_FILE

    terminal = Terminal(quiet=quiet, as_json=as_json)
    to = to or ONE_FILE.get(output.suffix, "compressed-tensors")
    done = fb.convert(
        model, output, to, lossy=lossy, dtype=dtype, overwrite=overwrite, shard_size=shard_size, progress=terminal
    )
    data = {"source": done.source, "output": str(done.path), "to": done.to}
    terminal.result(str(done), {**data, "layers": [asdict(layer) for layer in done.layers]})
