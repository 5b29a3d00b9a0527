"""`fewbit compare`: several runs in a table, and on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fewbit.cli.console import Terminal
from fewbit.cli.words import AsJson, Overwrite, Quiet
from fewbit.errors import CheckpointError, RecipeError
from fewbit.evaluation.size import megabytes

if TYPE_CHECKING:
    from fewbit.report.comparison import Comparison

#: Layers that are named below the table.
_LAYERS = 5


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(help="Output folders, .onnx or .gguf files with a report beside, or report.json files."),
    ],
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Page to write, .html.")] = None,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Print sizes, quality and speed of RUNS side by side, and write them on one page."""
    from fewbit.report import comparison as comparing
    from fewbit.report.comparison_page import render
    from fewbit.whole_file import write_whole

    terminal = Terminal(quiet=quiet, as_json=as_json)
    if output is not None and output.suffix != ".html":
        raise RecipeError(f"a comparison is written as .html, not {output.suffix!r}; --json prints its data")
    if output is not None and output.exists() and not overwrite:
        raise CheckpointError(f"{output} exists; give --overwrite to replace it, or another name")
    found = comparing.compare(runs)
    if output is not None:
        try:
            write_whole(output, render(found).encode())
        except OSError as error:
            raise CheckpointError(f"cannot write the page {output}: {error.strerror}") from error
    lines = [_table(found), *_layers(found), *(f"take care: {text}" for text in found.warnings)]
    lines += [f"written: {output}"] if output is not None else []
    terminal.result("\n".join(lines), {**found.to_dict(), "output": str(output) if output else None})


def _table(found: Comparison) -> str:
    columns = {
        "run": [f"{own.name}{' *' if own.name in found.best else ''}" for own in found.runs],
        "recipe": [own.report.recipe for own in found.runs],
        "tensors": [megabytes(own.report.bytes_after) for own in found.runs],
        "bits": [_shown(own.report.bits, "{:.2f}") for own in found.runs],
    }
    rows = [own.to_dict() for own in found.runs]
    for title, name, pattern in (
        ("KL", "kl_divergence", "{:.4f}"),
        ("top-1", "top1_agreement", "{:.1%}"),
        ("perplexity", "perplexity", "{:.3f}"),
        ("SQNR dB", "output_sqnr", "{:.2f}"),
        ("speed", "speed", "{:.2f} x"),
    ):
        if any(row[name] is not None for row in rows):
            columns[title] = [_shown(row[name], pattern) for row in rows]
    cells = [(title, *values) for title, values in columns.items()]
    widths = [max(map(len, column)) for column in cells]
    sides = ["<", "<", *">" * (len(cells) - 2)]
    lines = [
        "  ".join(f"{cell:{side}{width}}" for cell, side, width in zip(row, sides, widths, strict=True)).rstrip()
        for row in zip(*cells, strict=True)
    ]
    return "\n".join([*lines, "* no other run is both smaller and better"] if found.best else lines)


def _layers(found: Comparison) -> list[str]:
    """Return a line for each of the layers that differ most."""
    what = "output" if found.by_outputs else "weight"
    differing = [own for own in found.differences() if own.spread > 0.0][:_LAYERS]
    lines = [f"layers that differ most, by the error of the {what}:"] if differing else []
    for own in differing:
        told = [
            "not there" if becomes is None else f"{becomes} {_shown(lost, '{:.3%}')}".strip()
            for becomes, lost in zip(own.becomes, own.errors, strict=True)
        ]
        lines.append(f"  {own.name}: {' | '.join(told)}")
    return lines


def _shown(value: float | None, pattern: str) -> str:
    return "" if value is None else pattern.format(value)
