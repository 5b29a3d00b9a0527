"""A model that a preset casts as a whole: its graph in 16 bits, float32 where layers are kept and numbers overflow.

How large each value gets is seen on the data of the run, behind the layers that are cast already.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fewbit.checkpoints.onnx.fusion import optimized
from fewbit.checkpoints.onnx.half import HalfWritten, Halving, write_half
from fewbit.checkpoints.onnx.told import Told
from fewbit.formats.cast import Cast
from fewbit.interfaces import Content, frontend_of
from fewbit.onnx_graph.live import OnnxModel
from fewbit.runtimes.runtime import Runtime
from fewbit.samples.batches import Mapped

#: Islands that a report names, of each reason that there is.
_NAMED = 8


def write_cast_whole(graph: OnnxModel, content: Content, runtime: Runtime, path: Path, *, overwrite: bool) -> Told:
    """Write `graph` in the type that the plan casts to; return what there is to tell of it.

    Raises:
        CheckpointError: `path` exists or cannot be written, or the runtime does not load the file.

    """
    assert content.cast is not None
    given = content.batches or ([] if content.example is None else [content.example])
    asked = Halving(cast=content.cast, kept=_kept(graph), ends=content.manifest.storage_type == content.cast.dtype)
    written = write_half(graph, path, _extremes(graph, Mapped(content.frontend.fed, given)), asked, overwrite=overwrite)
    if runtime.name == "ort-cpu":
        optimized(path)
    return Told(
        kernels=dict.fromkeys(graph.layers, (f"{runtime.name}, in {content.cast.dtype}", runtime.name != "ort-cpu")),
        notes=tuple(_notes(written, content.cast, runtime, len(given))),
    )


def _extremes(graph: OnnxModel, batches: Sequence[Any]) -> Mapping[str, tuple[float, float]]:
    frontend: Any = frontend_of("onnx")
    found: Mapping[str, tuple[float, float]] = frontend.value_extremes(graph, batches) if batches else {}
    return found


def _kept(graph: OnnxModel) -> dict[str, str]:
    """Return the nodes of layers that stay float, by the name of their first output."""
    layers = [own for name, own in graph.found.items() if name not in graph.layers]
    return {str(value.name): f"{own.layer.name} is kept float" for own in layers for value in (own.output, own.result)}


def _notes(written: HalfWritten, cast: Cast, runtime: Runtime, batches: int) -> list[str]:
    notes = [
        f"{written.nodes} nodes compute in {cast.dtype} for {runtime.name}, {len(written.islands)} in float32, with "
        f"{written.casts} casts between them",
        f"numbers between layers are {cast.dtype} in the file only, not in the model that was measured",
    ]
    if not batches:
        notes.append("values between layers were not checked for overflow: there was no data")
    if runtime.name == "ort-cpu":
        notes.append("onnxruntime computes most of float16 in float32 on CPUs: the file is smaller, not faster")
    reasons = Counter(written.islands.values())
    notes += [
        f"float32: {reason}{f' ({count} nodes)' if count > 1 else ''}" for reason, count in reasons.most_common(_NAMED)
    ]
    left = len(reasons) - _NAMED
    return [*notes, f"float32 for {left} more reasons"] if left > 0 else notes
