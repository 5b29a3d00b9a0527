"""`fewbit evaluate`: of language models perplexity, KL divergence, agreement, size and speed; ONNX files elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fewbit.cli.console import Terminal
from fewbit.cli.evaluate_onnx import evaluate_onnx, require_for_samples
from fewbit.cli.words import AsJson, BatchSize, Data, Device, Model, Preprocess, Quiet, SequenceLength, Sequences, Text
from fewbit.errors import RecipeError
from fewbit.evaluation.token_ids import require_known
from fewbit.samples.files import Samples

if TYPE_CHECKING:
    from fewbit.evaluation.latency import Latency
    from fewbit.evaluation.quality import Quality


def evaluate(
    model: Model,
    reference: Annotated[str | None, typer.Option(help="Model to compare with: KL divergence, agreement.")] = None,
    text: Text = None,
    sequences: Sequences = 4,
    length: SequenceLength = 512,
    data: Data = None,
    labels: Annotated[
        Path | None, typer.Option(help="Classes of the samples, .npy or .csv. Default: `labels` in or beside them.")
    ] = None,
    samples: Annotated[int | None, typer.Option(min=1, help="Samples of --data at most. Default: all.")] = None,
    batch_size: BatchSize = None,
    preprocess: Preprocess = None,
    device: Device = "auto",
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure MODEL on a text, or an ONNX model on samples, alone or beside a reference."""
    terminal = Terminal(quiet=quiet, as_json=as_json)
    of_samples = {
        "--data": data, "--labels": labels, "--samples": samples, "--batch-size": batch_size, "--preprocess": preprocess
    }  # fmt: skip
    if model.endswith(".onnx"):
        require_for_samples(model, reference, {"--data": data, "--text": text}, device)
        assert data is not None
        chosen = Samples(data, count=samples, batch_size=batch_size, preprocessing=preprocess, labels=labels)
        evaluate_onnx(terminal, model, reference, chosen)
        return
    for name, value in of_samples.items():
        if value is not None:
            raise RecipeError(
                f"{name} is for .onnx files, and {model} is measured on a text; use --text, or leave it out"
            )
    if reference is not None and reference.endswith(".onnx"):
        raise RecipeError(f"{model} cannot be compared with {reference}: one is measured on a text, one on samples")
    _on_text(terminal, _Pair(model, reference, device), text, sequences, length)


@dataclass(frozen=True)
class _Pair:
    model: str
    reference: str | None
    device: str


def _on_text(terminal: Terminal, pair: _Pair, text: str | None, sequences: int, length: int) -> None:
    from fewbit.evaluation.latency import latencies
    from fewbit.evaluation.quality import compare
    from fewbit.evaluation.text import read_text, token_sequences
    from fewbit.sources import open_source

    model, reference = pair.model, pair.reference
    if text == "none":
        raise RecipeError("there is nothing to measure without a text; leave out --text none")
    content, name = read_text(text)
    with terminal.phase("load"):
        source = open_source(model)
        measured = source.load()  # first: what is amiss with a folder shows there, not in its tokenizer
        batches = token_sequences(source.tokenizer(), content, sequences=sequences, length=length)
        own = _logits(measured, pair.device, batches)
        beside = open_source(reference).load() if reference else None
        other = _logits(beside, pair.device, batches) if reference else None
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
