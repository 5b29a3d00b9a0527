"""`fewbit verify`: whether the files of an output are those that were written."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from fewbit.cli.console import Terminal
from fewbit.cli.words import AsJson, Quiet


def verify(
    output: Annotated[Path, typer.Argument(help="A folder that fewbit wrote, or a .gguf or .onnx file.")],
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check the SHA-256 of every file of OUTPUT against its report; name what changed, is missing or was added."""
    from fewbit.checkpoints.hashes import verify as verified

    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.phase("verify"):
        found = verified(output)
    terminal.result(str(found), {"output": str(output), "files": found.files, "bytes": found.nbytes})
