"""From one layout of quantized weights to another: without loss, which a bit-exact check proves, or as told with one.

Layers pass one at a time. What was written is read back, and every dequantize() compared with the source's by digest.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.activation import Activation
from fewbit.checkpoints.new_file import require_free_output
from fewbit.errors import CheckpointError, NotYetError, PlanError, RecipeError
from fewbit.evaluation.fidelity import fidelity
from fewbit.formats.scale_type import round_scale
from fewbit.interfaces import (
    ONE_FILE,
    Checkpoint,
    CheckpointFormat,
    Layer,
    Manifest,
    Progress,
    QuantizedLayer,
    Silent,
    checkpoint_format,
    frontend_of,
)
from fewbit.numerics.namespace import Array, to_numpy
from fewbit.problems import several
from fewbit.qtensor import QTensor, quantize
from fewbit.report.conversion import Conversion, ConvertedLayer
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import ScaleType, Scheme
from fewbit.sources import open_source
from fewbit.sources.checkpoint import CheckpointFolder

#: Scales keep their type, or are given this one.
_TYPES = ("auto", "float32", "float16", "bfloat16")


def convert(
    path: str | Path,
    output: str | Path,
    to: str,
    *,
    lossy: bool = False,
    dtype: str = "auto",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Conversion:
    """Write the quantized model at `path` to `output` in another layout; its values stay as they are.

    Args:
        path: a folder in a layout that fewbit reads.
        output: where to write; it appears complete or not at all.
        to: `compressed-tensors`, `gptq`, `awq` or `gguf`.
        lossy: round to nearest where the layout does not hold the values, instead of refusing.
        dtype: for a layout that leaves it open the type of scales: `float32`, `float16`, `bfloat16`; `auto` is theirs.
        overwrite: replace a model folder.
        progress: shows how far it is.

    Raises:
        PlanError: a layer that the layout cannot hold without loss; every such layer that its scheme tells is named.
        CheckpointError: a source that cannot be read, an output that cannot be written.
        NotYetError: a GGUF file.

    """
    target, output, progress = checkpoint_format(to), Path(output), progress or Silent()
    if dtype not in _TYPES:
        raise RecipeError(f"dtype {dtype!r} is none of {', '.join(_TYPES)}")
    require_free_output(output, overwrite=overwrite)
    source = open_source(str(path))
    if Path(path).suffix in ONE_FILE:
        raise NotYetError(
            f"{source.name} is one file, which this version writes and runs but does not convert; "
            f"fewbit quantize reads its numbers and rounds them anew for --to {to}"
        )
    if not isinstance(source, CheckpointFolder):
        raise PlanError(f"{source.name} is not quantized; use fewbit quantize --to {to}")
    if output.exists() and output.resolve() == source.path.resolve():
        raise RecipeError(f"{output} is the model that is read; write to another folder")
    checkpoint = source.checkpoint
    layers = _layers(source)
    storage_type = _storage_type(checkpoint) if dtype == "auto" else dtype
    planned = _planned(checkpoint, layers, target, storage_type, lossy=lossy)  # type: ignore[arg-type]
    manifest = _manifest(source, layers, planned, storage_type)  # type: ignore[arg-type]
    work = _Work(checkpoint, target, planned, lossy=lossy)
    with progress.phase("write"):
        written = work.write(output, manifest, overwrite=overwrite)
    with progress.phase("check"):
        work.require_equal(written)
    done = tuple(work.done[name] for name in planned)
    return Conversion(source=source.name, path=output, to=target.name, layers=done)


@dataclass(frozen=True, slots=True)
class _Planned:
    """What a layer becomes."""

    quantized: QuantizedLayer
    #: The scheme in the source, before any runs of columns.
    before: Scheme
    #: Why its values cannot stay; `None`: they may, its numbers permitting.
    loss: str | None = None


class _Work:
    """Turns values into those of the target, and remembers what they must read back as."""

    def __init__(
        self, checkpoint: Checkpoint, target: CheckpointFormat, planned: Mapping[str, _Planned], *, lossy: bool
    ) -> None:
        self._checkpoint = checkpoint
        self._target = target
        self._planned = planned
        self._lossy = lossy
        self._digests: dict[str, bytes] = {}
        self.done: dict[str, ConvertedLayer] = {}

    def write(self, output: Path, manifest: Manifest, *, overwrite: bool) -> Path:
        """Write everything, complete or not at all, and return where."""
        writer = self._target.open(output, manifest, overwrite=overwrite)
        try:
            for name, value in self._checkpoint.tensors():
                if not (isinstance(value, Activation) and self._planned[name].quantized.input is None):
                    writer.put(name, self.converted(name, value))
            return writer.close()
        except OSError as error:
            raise CheckpointError(f"cannot write {output}: {error.strerror or error}") from error
        finally:
            writer.abort()

    def converted(self, name: str, value: Any) -> Any:
        """Return what is written for the tensor, weight or range called `name`."""
        if isinstance(value, Activation):
            return value
        if not isinstance(value, QTensor):
            self._digests[name] = _digest(_plain(value))
            return value
        own = self._planned[name]
        scheme, values = own.quantized.scheme, to_numpy(value.dequantize())
        sqnr = None
        try:
            if own.loss is not None:
                raise CheckpointError(own.loss)
            qtensor = self._target.restated(value, scheme)
        except CheckpointError as error:
            if not self._lossy:
                raise PlanError(f"{name}: {error}; --lossy rounds it anew") from error
            qtensor, sqnr = self._rounded(value, values, scheme)
        self._digests[name] = _digest(to_numpy(qtensor.dequantize()) if sqnr is not None else values)
        given = self._checkpoint.inputs.get(name) if own.quantized.input is None else None
        unrounded = input_scheme_to_text(given) if given else None
        sqnr = sqnr if sqnr != inf else None
        self.done[name] = ConvertedLayer(name, str(own.before), str(scheme), sqnr, unrounded)
        return qtensor

    def _rounded(self, value: QTensor, values: Array, scheme: Scheme) -> tuple[QTensor, float]:
        """Return the nearer of two and its SQNR: ranges searched anew, or only scales rounded, where that will do."""
        found = [replace(quantize(values, scheme.searched()), scheme=scheme)]
        if not isinstance(value.scale, QTensor):
            with contextlib.suppress(CheckpointError):
                kept = replace(value, scale=round_scale(value.scale, scheme.scale_type))
                found.append(self._target.restated(kept, scheme))
        told = [(own, fidelity(values, own.dequantize()).sqnr) for own in found]
        return max(told, key=lambda pair: pair[1])

    def require_equal(self, written: Path) -> None:
        """Read back what was written; raise `CheckpointError`, and remove it, unless all is as it must be."""
        found = {
            name: _digest(to_numpy(value.dequantize()) if isinstance(value, QTensor) else _plain(value))
            for name, value in self._target.read(written).tensors()
            if not isinstance(value, Activation)
        }
        wrong = [name for name in self._digests.keys() | found.keys() if self._digests.get(name) != found.get(name)]
        if wrong:
            (shutil.rmtree if written.is_dir() else Path.unlink)(written)
            raise CheckpointError(
                f"{written} read back with other values of {several(sorted(wrong))} than were to be written, and was "
                "removed; this is a defect of fewbit"
            )


def _layers(source: CheckpointFolder) -> list[Layer]:
    """Return the layers of the model, or without a description of it those that the names of tensors tell."""
    checkpoint = source.checkpoint
    if "model_type" in checkpoint.configuration:
        return list(frontend_of(source.framework).layers(source.skeleton()))
    shapes = {name: value.shape for name, value in checkpoint.tensors() if isinstance(value, QTensor)}
    for tensor in checkpoint.stored:
        name = tensor.name.removesuffix(".weight")
        if name != tensor.name and name not in shapes and len(tensor.shape) == 2:
            shapes[name] = tensor.shape
    return [Layer(name, "linear", (shape[0], shape[1]), "Linear") for name, shape in shapes.items()]


def _planned(
    checkpoint: Checkpoint,
    layers: list[Layer],
    target: CheckpointFormat,
    storage_type: ScaleType,
    *,
    lossy: bool,
) -> dict[str, _Planned]:
    """Return what each quantized layer becomes; raise `PlanError` with all that their schemes forbid."""
    planned, alike = {}, dict[str, list[str]]()
    scale_type = target.scale_type(storage_type)
    for name in checkpoint.schemes.keys() - {layer.name for layer in layers}:
        raise CheckpointError(f"{checkpoint.path} holds {name}; the model has no such layer")
    for layer in [layer for layer in layers if layer.name in checkpoint.schemes]:
        name = layer.name
        before = checkpoint.scattered.get(name, checkpoint.schemes[name])
        given = QuantizedLayer(layer, before, checkpoint.inputs.get(name))
        held = _typed(target.held_as(given), scale_type)
        loss = target.problem(held)
        if loss is None and name in checkpoint.scattered:
            loss = f"its columns share scales by g_idx (act-order), and {target.name} is written for neighbours"
        if loss is not None and lossy:
            held = _typed(target.nearest(given), scale_type)
            if problem := target.problem(held):
                raise PlanError(f"{name}: {problem}")
        elif loss is not None:
            alike.setdefault(loss, []).append(name)
        planned[name] = _Planned(held, before, loss)
    if alike:
        remedy = "--lossy (lossy=True) rounds to what it holds"
        raise PlanError("\n".join(f"{several(names)}: {text}; {remedy}" for text, names in alike.items()))
    return planned


def _typed(quantized: QuantizedLayer, scale_type: ScaleType) -> QuantizedLayer:
    """Return the layer with the type in which its scales are stored, if it has float ones."""
    scheme = quantized.scheme
    if not scheme.scaled or scheme.scale_scheme is not None:
        return quantized
    return replace(quantized, scheme=replace(scheme, scale_type=scale_type))


def _storage_type(checkpoint: Checkpoint) -> str:
    """Return the type of all scales; float32, which holds any, where there are several."""
    types = {str(scheme.scale_type) for scheme in checkpoint.schemes.values() if scheme.scale_type}
    return types.pop() if len(types) == 1 else "float32"


def _manifest(
    source: CheckpointFolder, layers: list[Layer], planned: Mapping[str, _Planned], storage_type: ScaleType
) -> Manifest:
    checkpoint = source.checkpoint
    owned = partial(_owned, planned=planned)
    return Manifest(
        quantized=tuple(own.quantized for own in planned.values()),
        kept=tuple(layer for layer in layers if layer.name not in planned),
        floats=tuple(tensor for tensor in checkpoint.stored if not owned(tensor.name)),
        storage_type=storage_type,
        configuration=checkpoint.configuration,
        files=source.companions(),
    )


def _owned(name: str, planned: Mapping[str, _Planned]) -> bool:
    """Whether a stored tensor is part of a quantized weight or of the range of its input."""
    owner, _, part = name.rpartition(".")
    return owner in planned and part != "bias"


def _plain(value: Any) -> np.ndarray[Any, Any]:
    """Return a tensor that is not quantized, floats of 16 bits as the float32 numbers that some layouts store."""
    array = np.asarray(value)
    return array.astype(np.float32) if array.dtype.name in ("float16", "bfloat16") else array


def _digest(array: np.ndarray[Any, Any]) -> bytes:
    """Return a digest of type, shape and bits."""
    told = f"{array.dtype}{array.shape}".encode()
    content = np.ascontiguousarray(array).view(np.uint8) if array.ndim else np.frombuffer(array.tobytes(), np.uint8)
    return hashlib.blake2b(content.data, key=told[:64]).digest()
