"""`fewbit finetune`: a language model trained with rounding in the loop."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fewbit.calibration import Calibration
from fewbit.checkpoints.new_file import require_free_output
from fewbit.cli.console import Terminal
from fewbit.cli.plan_table import plan_table
from fewbit.cli.words import AsJson, Layout, Model, Overwrite, Quiet, SequenceLength, Sequences
from fewbit.errors import RecipeError
from fewbit.result import is_file_name, target_name


def finetune(  # a command's options are its arguments
    model: Model,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder or .gguf file to write.", show_default=False)
    ] = None,
    recipe: Annotated[str, typer.Option(help="A preset (w4a16, ...) or a .toml file.")] = "w4a16",
    text: Annotated[
        str, typer.Option(help="UTF-8 text to train on; self: the model writes it.", show_default=True)
    ] = "self",
    samples: Annotated[int, typer.Option(help="Sequences of it to train on, over and over.", min=1)] = 128,
    training_length: Annotated[int, typer.Option(help="Tokens of each.", min=2)] = 256,
    steps: Annotated[int, typer.Option(help="Steps of the optimizer.", min=1)] = 100,
    batch_size: Annotated[int, typer.Option(help="Sequences a step.", min=1)] = 4,
    rate: Annotated[float, typer.Option(help="Learning rate of weights.")] = 1e-5,
    range_rate: Annotated[float, typer.Option(help="Learning rate of scales, as a part of what they are.")] = 1e-3,
    task: Annotated[float, typer.Option(help="How much the next token counts beside the float model.", min=0)] = 0.0,
    temperature: Annotated[float, typer.Option(help="Of both in the divergence.")] = 1.0,
    evaluation_text: Annotated[
        str | None, typer.Option(help="Text to measure on; `none` measures nothing. Default: Python's own topics.")
    ] = None,
    sequences: Sequences = 4,
    length: SequenceLength = 512,
    to: Layout = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the plan and the bytes of the training.")] = False,
    seed: Annotated[int, typer.Option(help="For text that the model writes, and the order of samples.", min=0)] = 0,
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Quantize MODEL, train it to follow its float self on a text, and write it."""
    if output is not None:
        require_free_output(output, overwrite=overwrite)
    terminal, layout = Terminal(quiet=quiet, as_json=as_json), target_name(output or Path("out"), to, None)
    with terminal.phase("plan"):
        from fewbit.evaluation.text import read_text, token_sequences
        from fewbit.sources import open_source
        from fewbit.training.finetuning import Finetuning, Texts
        from fewbit.training.finetuning import finetune as train
    options = Finetuning(
        steps=steps, sequences=batch_size, rate=rate, range_rate=range_rate, alpha=task, temperature=temperature,
        seed=seed,
    )  # fmt: skip
    if dry_run:
        _show_needs(terminal, model, recipe, training_length, options, layout)
        return
    if output is None:
        raise RecipeError("nowhere to write: give -o OUT, or --dry-run to see the plan and its bytes only")
    texts = Texts(training=Calibration(data=text, samples=samples, length=training_length))
    if evaluation_text != "none":
        words, name = read_text(evaluation_text)
        batches = token_sequences(open_source(model).tokenizer(), words, sequences=sequences, length=length)
        texts = Texts(training=texts.training, evaluation=batches, name=name)
    result = train(model, recipe, texts, options=options, to=layout, progress=terminal)
    with terminal.phase("write"):
        written = result.save(output, layout, overwrite=overwrite)
    beside = f", with {output.stem}.report.html beside it" if is_file_name(output) else ""
    assert result.report is not None
    terminal.result(
        f"{result.report}\nwritten                {written}{beside}",
        {**result.report.to_dict(), "output": str(written)},
    )


def _show_needs(terminal: Terminal, model: str, recipe: str, length: int, options: Any, layout: str) -> None:
    """Print what would be done, and what that takes with sequences of `length` tokens."""
    from fewbit.training.finetuning import plan_finetuning

    needs = plan_finetuning(model, recipe, length=length, options=options, to=layout, progress=terminal)
    layers = [{"name": row.layer.name, "becomes": row.becomes} for row in needs.plan.rows]
    data = {"model": model, "recipe": needs.plan.recipe.name, "layers": layers, "memory": needs.memory.to_dict()}
    terminal.result(f"{plan_table(needs.plan)}\n\n{needs.memory}", data)
