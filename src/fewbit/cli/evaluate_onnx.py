"""`fewbit evaluate` of ONNX files: outputs beside a reference's, accuracy, size, latency, as users run them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.cli.console import Terminal
from fewbit.errors import CalibrationError, MissingExtraError, RecipeError
from fewbit.samples.batches import first_sample, samples_in
from fewbit.samples.files import Opened, Samples
from fewbit.samples.model_input import ModelInput, at_once

if TYPE_CHECKING:
    from fewbit.evaluation.comparison import Comparison
    from fewbit.evaluation.outputs import OutputError
    from fewbit.frontends.onnx.model_file import ModelFile


@dataclass(frozen=True)
class _Timing:
    """Median seconds of a run of so many samples."""

    samples: int
    seconds: float
    reference_seconds: float | None


def require_for_samples(model: str, reference: str | None, options: Mapping[str, str | None], device: str) -> None:
    """Raise `RecipeError` for options that an ONNX file cannot be measured with."""
    if options["--text"] is not None:
        raise RecipeError(f"{model} is measured on samples, not on a text; give --data instead of --text")
    if options["--data"] is None:
        raise RecipeError(
            f"{model} is measured on samples; give --data: an .npz or .npy file, or a folder of .npy files or images"
        )
    if reference is not None and not reference.endswith(".onnx"):
        raise RecipeError(f"{model} is compared with .onnx files only, not with {reference}")
    if device not in ("auto", "cpu"):
        raise RecipeError(f"device {device!r} cannot be used: ONNX models run on the CPU in this version")


def evaluate_onnx(terminal: Terminal, model: str, reference: str | None, samples: Samples) -> None:
    """Measure the file `model` on `samples`, alone or beside `reference`, and print what was found."""
    from fewbit.evaluation.comparison import compare

    with terminal.phase("load"):
        files = [_opened(Path(path)) for path in (model, reference) if path is not None]
        opened = samples.open(_inputs(files))
    runs = [partial(_run, file) for file in files]
    tracked = terminal.track(opened.batches, "evaluate")
    found = compare(runs[0], runs[1] if reference else None, tracked, opened.labels)
    with terminal.phase("time"):
        times = _times(files, opened.batches[0])
    data = {
        "model": model,
        "reference": reference,
        "data": opened.name,
        **asdict(found),
        "bytes_on_disk": files[0].nbytes,
        "reference_bytes_on_disk": files[1].nbytes if reference else None,
        "latency": [asdict(own) for own in times],
    }
    terminal.result("\n".join(f"{name:22} {value}" for name, value in _rows(found, files, times, opened)), data)


def _opened(path: Path) -> ModelFile:
    try:
        from fewbit.frontends.onnx.model_file import ModelFile
    except ImportError as error:
        raise MissingExtraError(f"ONNX models need {error.name}; pip install 'fewbit[onnx]'") from error
    return ModelFile(path)


def _inputs(files: Sequence[ModelFile]) -> list[ModelInput]:
    """Return what the samples have to fit: shapes, but no type of floats, which each file is given its own of.

    Raises:
        CalibrationError: files that no batch fits both of.

    """
    sizes = {file.name: at_once(file.inputs) for file in files}
    fixed = {size for size in sizes.values() if size is not None}
    if len(fixed) > 1:
        wanted = " and ".join(f"{name} takes {size} samples" for name, size in sizes.items())
        raise CalibrationError(f"{wanted} at once, so that no batch fits both; export one of them with a free axis")
    stricter = next((file for file in files if sizes[file.name] is not None), files[0])
    return [
        replace(own, dtype=None) if own.dtype is not None and own.dtype.kind == "f" else own for own in stricter.inputs
    ]


def _run(file: ModelFile, batch: Any) -> Mapping[str, Any]:
    return file.run(file.feeds(batch))


def _times(files: Sequence[ModelFile], batch: Any) -> list[_Timing]:
    """Return how long the files take for a batch, and for one sample where they take any number."""
    from fewbit.evaluation.latency import steadily

    count = samples_in(batch)
    free = count > 1 and all(at_once(file.inputs) is None for file in files)
    found = []
    for size, own in ([(1, first_sample(batch))] if free else []) + [(count, batch)]:
        feeds = [file.feeds(own) for file in files]
        seconds, *beside = steadily([partial(file.run, given) for file, given in zip(files, feeds, strict=True)])
        found.append(_Timing(size, seconds, beside[0] if beside else None))
    return found


def _rows(
    found: Comparison, files: Sequence[ModelFile], times: Sequence[_Timing], opened: Opened
) -> Iterator[tuple[str, str]]:
    """Yield what people are told, as names and values."""
    from fewbit.evaluation.size import megabytes

    yield from ((own.name, _described(own)) for own in found.outputs)
    yield from (("not compared", why) for why in found.left_out)
    if found.top1_agreement is not None:
        yield "top-1 agreement", f"{found.top1_agreement:.2%} of {found.predictions:,} predictions ({found.scores})"
    if found.accuracy is not None:
        beside = f", the reference's {found.reference_accuracy:.2%}" if found.reference_accuracy is not None else ""
        yield "accuracy", f"{found.accuracy:.2%}{beside}, of {found.predictions:,} labels ({found.scores})"
    yield "measured on", opened.name
    own, *other = [file.nbytes for file in files]
    yield (
        "size",
        megabytes(own) + "".join(f", {own / size:.2f} times the reference's {megabytes(size)}" for size in other),
    )
    for time in times:
        number = "1 sample" if time.samples == 1 else f"{time.samples} samples"
        text = _milliseconds(time.seconds)
        if time.reference_seconds is not None:
            faster = time.reference_seconds / time.seconds
            text += f", {faster:.2f} times as fast as the reference's {_milliseconds(time.reference_seconds)}"
        yield f"latency, {number}", text


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g} ms" if seconds < 0.1 else f"{seconds * 1e3:,.0f} ms"


def _described(own: OutputError) -> str:
    if own.equal is not None:
        return f"{own.equal:.2%} of its whole numbers are those of the reference"
    return (
        f"SQNR {own.sqnr:.1f} dB, mean absolute difference {own.mean_absolute_difference:.3g}, "
        f"cosine {own.cosine:.5f}, least {own.least_cosine:.5f}"
    )
