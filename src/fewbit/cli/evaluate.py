"""`fewbit evaluate`: perplexity, KL divergence, top-1 agreement, size and speed."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewbit.cli.console import Terminal
from fewbit.cli.words import AsJson, Device, Model, Quiet, SequenceLength, Sequences, Text

if TYPE_CHECKING:
    from fewbit.evaluation.quality import Quality


def evaluate(
    model: Model,
    reference: Annotated[str | None, typer.Option(help="Model to compare with: KL divergence, agreement.")] = None,
    text: Text = None,
    sequences: Sequences = 4,
    length: SequenceLength = 512,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure MODEL on a text, alone or beside a reference."""
    from fewbit.evaluation.quality import compare
    from fewbit.evaluation.text import read_text, token_sequences
    from fewbit.sources import open_source

    terminal = Terminal(quiet=quiet, as_json=as_json)
    content, name = read_text(text)
    with terminal.phase("load"):
        source = open_source(model)
        own = _logits(source.load(), device)
        other = _logits(open_source(reference).load(), device) if reference else None
        batches = token_sequences(source.tokenizer(), content, sequences=sequences, length=length)
    tracked = terminal.track(batches, "evaluate")
    if other is None:
        quality, _ = compare(own, None, tracked)
        data: dict[str, Any] = {"model": model, "text": name, "quality": asdict(quality)}
        terminal.result(_table(model, quality, name), data)
        return
    expected, compared = compare(other, own, tracked)
    assert compared is not None
    data = {"model": model, "reference": reference, "text": name}
    data |= {"quality": asdict(compared), "reference_quality": asdict(expected)}
    lines = [_table(model, compared, name), f"reference perplexity   {expected.perplexity:.3f} ({reference})"]
    terminal.result("\n".join(lines), data)


def _logits(model: Any, device: str) -> Any:
    import torch

    where = None if device == "auto" else device
    if where is not None:
        from fewbit.frontends.torch.frontend import TorchFrontend

        model = TorchFrontend().place(model, where)

    @torch.no_grad()
    def logits(tokens: Any) -> Any:
        return model(tokens if where is None else tokens.to(where)).logits.to(tokens.device)

    return logits


def _table(model: str, quality: Quality, text: str) -> str:
    from fewbit.evaluation.size import bytes_on_disk
    from fewbit.interfaces import Source
    from fewbit.sources import open_source

    source: Source = open_source(model)
    rows = [("perplexity", f"{quality.perplexity:.3f}")]
    if quality.kl_divergence is not None:
        rows.append(("mean KL divergence", f"{quality.kl_divergence:.4f} nats"))
        rows.append(("top-1 agreement", f"{quality.top1_agreement:.1%}"))
    rows.append(("measured on", f"{quality.predictions} predictions, {text}"))
    rows.append(("speed", f"{quality.predictions / max(quality.seconds, 1e-9):.0f} predictions a second"))
    path = Path(getattr(source, "folder", model)) / (getattr(source, "gguf", None) or "")
    if path.exists():
        rows.append(("weights on disk", f"{bytes_on_disk(path) / 1e6:.1f} MB"))
    return "\n".join(f"{name:22} {value}" for name, value in rows)
