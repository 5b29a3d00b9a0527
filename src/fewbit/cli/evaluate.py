"""`fewbit evaluate`: perplexity, KL divergence, top-1 agreement, size and speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewbit.cli.console import Terminal
from fewbit.cli.words import AsJson, Device, Model, Quiet, SequenceLength, Sequences, Text
from fewbit.errors import NotYetError, RecipeError
from fewbit.evaluation.token_ids import require_known

if TYPE_CHECKING:
    from fewbit.evaluation.latency import Latency
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
    from fewbit.evaluation.latency import latencies
    from fewbit.evaluation.quality import compare
    from fewbit.evaluation.text import read_text, token_sequences
    from fewbit.sources import open_source

    terminal = Terminal(quiet=quiet, as_json=as_json)
    if model.endswith(".onnx"):
        raise NotYetError(f"{model}: ONNX models are measured by fewbit.quantize(..., evaluation=batches)")
    if text == "none":
        raise RecipeError("there is nothing to measure without a text; leave out --text none")
    content, name = read_text(text)
    with terminal.phase("load"):
        source = open_source(model)
        measured = source.load()  # first: what is amiss with a folder shows there, not in its tokenizer
        batches = token_sequences(source.tokenizer(), content, sequences=sequences, length=length)
        own = _logits(measured, device, batches)
        beside = open_source(reference).load() if reference else None
        other = _logits(beside, device, batches) if reference else None
    size = _size(source)
    tracked = terminal.track(batches, "evaluate")
    if other is None:
        quality, _ = compare(own, None, tracked)
        data: dict[str, Any] = {"model": model, "text": name, "bytes_on_disk": size, "quality": asdict(quality)}
        with terminal.phase("time"):
            times = latencies([measured], batches[0][:1])
        terminal.result("\n".join([_table(quality, name, size), *_speeds(times)]), data | _timed(times))
        return
    expected, compared = compare(other, own, tracked)
    assert compared is not None
    data = {"model": model, "reference": reference, "text": name, "bytes_on_disk": size}
    data |= {"quality": asdict(compared), "reference_quality": asdict(expected)}
    with terminal.phase("time"):
        times = latencies([measured, beside], batches[0][:1])
    lines = [
        _table(compared, name, size),
        *_speeds(times),
        f"reference perplexity   {expected.perplexity:.3f} ({reference})",
    ]
    terminal.result("\n".join(lines), data | _timed(times))


def _logits(model: Any, device: str, batches: Sequence[Any]) -> Any:
    """Return what computes the logits of `model`, which must be able to take the batches."""
    import torch

    require_known(batches, model, what="text")
    where = None if device == "auto" else device
    if where is not None:
        from fewbit.frontends.torch.frontend import TorchFrontend

        model = TorchFrontend().place(model, where)

    @torch.no_grad()
    def logits(tokens: Any) -> Any:
        return model(tokens if where is None else tokens.to(where)).logits.to(tokens.device)

    return logits


def _table(quality: Quality, text: str, size: int | None) -> str:
    from fewbit.evaluation.size import megabytes

    rows = [("perplexity", f"{quality.perplexity:.3f}")]
    if quality.kl_divergence is not None:
        rows.append(("mean KL divergence", f"{quality.kl_divergence:.4f} nats"))
        rows.append(("top-1 agreement", f"{quality.top1_agreement:.1%}"))
    rows.append(("measured on", f"{quality.predictions} predictions, {text}"))
    if size is not None:
        rows.append(("weights on disk", megabytes(size)))
    return "\n".join(f"{name:22} {value}" for name, value in rows)


def _speeds(times: Sequence[Latency]) -> list[str]:
    """Return prefill and decoding of the first model, beside the reference if there is one."""
    lines = []
    for name in ("prefill", "decode"):
        speeds: list[float | None] = [getattr(own, f"{name}_speed") for own in times]
        if speeds[0] is None:
            continue
        other = speeds[1] if len(speeds) > 1 else None
        beside = f", {speeds[0] / other:.2f} times the reference's {other:.1f}" if other else ""
        lines.append(f"{name:22} {speeds[0]:.1f} tokens a second{beside}")
    return lines


def _timed(times: Sequence[Latency]) -> dict[str, Any]:
    names = ("latency", "reference_latency")
    return {name: asdict(own) for name, own in zip(names, times, strict=False)}


def _size(source: Any) -> int | None:
    """Return the bytes of the weight files of a source that has files."""
    from fewbit.evaluation.size import bytes_on_disk

    folder = getattr(source, "folder", None) or getattr(source, "path", None)
    if folder is None:
        return None
    return bytes_on_disk(folder / source.gguf if getattr(source, "gguf", None) else folder)
