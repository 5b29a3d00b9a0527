"""`fewbit demo`: the main job end to end on a model that pip installs."""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from typing import Annotated, Any

import typer

from fewbit.calibration import Calibration
from fewbit.cli.console import Terminal
from fewbit.cli.words import AsJson, Overwrite, Quiet

_PROMPT = "The capital of France is"


def demo(
    context: typer.Context,
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder to write.")] = Path("demo-output"),
    recipe: Annotated[str, typer.Option(help="A preset or a .toml file.")] = "w4a16",
    overwrite: Overwrite = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Quantize smollm2, measure it, write report and checkpoint, and let transformers write a sentence from it."""
    from fewbit.cli.chosen_recipe import Schemes, choose_recipe
    from fewbit.cli.run import Run

    terminal = Terminal(quiet=quiet, as_json=as_json)
    chosen = choose_recipe(recipe, Schemes(), [])
    run = Run(
        model="smollm2", recipe=chosen, output=output, overwrite=overwrite, command=context.obj,
        calibration=Calibration(data="self", samples=8, length=128),  # an eighth of the default: a demo is to be short
    )  # fmt: skip
    result, _ = run.carry_out(terminal)
    with terminal.phase("reload"):
        sentence = continuation(output, _PROMPT)
    lines = [
        str(result.report),
        f"checkpoint             {output}",
        f"report                 {output / 'report.html'}",
        f"transformers writes    {sentence!r}",
    ]
    terminal.result("\n".join(lines), {**result.report.to_dict(), "output": str(output), "sentence": sentence})


def continuation(folder: Path, prompt: str, *, tokens: int = 16) -> str:
    """Return `prompt` continued greedily by the checkpoint as transformers and compressed-tensors load it."""
    from fewbit.errors import MissingExtraError
    from fewbit.sources.huggingface import load_tokenizer, transformers

    try:
        import compressed_tensors  # noqa: F401  # the package that transformers reads the folder with
    except ImportError as error:
        raise MissingExtraError("reloading with transformers needs: pip install 'fewbit[demo]'") from error
    tokenizer = load_tokenizer(folder)
    inputs = tokenizer(prompt, return_tensors="pt")
    # compressed-tensors draws bars of its own; errors come as exceptions.
    with contextlib.redirect_stderr(io.StringIO()):
        auto: Any = transformers().AutoModelForCausalLM
        model = auto.from_pretrained(folder, dtype="float32", local_files_only=True)
        written = model.generate(**inputs, max_new_tokens=tokens, do_sample=False)
    return str(tokenizer.decode(written[0], skip_special_tokens=True))
