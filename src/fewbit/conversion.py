"""From one layout of quantized weights to another: without loss, which a bit-exact check proves, or as told with one.

Layers pass one at a time. What was written is read back, and every dequantize() compared with the source's by digest.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from math import inf
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.byte_size import byte_size
from fewbit.checkpoints.new_file import require_free_output
from fewbit.checkpoints.safetensors_file import numpy_type
from fewbit.checkpoints.whole_numbers import in_whole_numbers
from fewbit.conversion_check import digest_of, require_equal
from fewbit.conversion_plan import ConversionPlan, Planned
from fewbit.errors import CheckpointError, PlanError, RecipeError
from fewbit.evaluation.fidelity import fidelity
from fewbit.interfaces import ONE_FILE, Progress, Silent, checkpoint_format
from fewbit.numerics.namespace import Array, to_numpy
from fewbit.qtensor import QTensor, quantize
from fewbit.report.conversion import Conversion, ConvertedLayer
from fewbit.schemes.notation import input_scheme_to_text
from fewbit.schemes.scheme import Scheme
from fewbit.sources import open_source
from fewbit.sources.checkpoint import CheckpointFolder
from fewbit.sources.gguf import GgufModel
from fewbit.sources.rotated import RotatedDemo

#: Scales keep their type, or are given this one.
_TYPES = ("auto", "float32", "float16", "bfloat16")


def convert(  # noqa: PLR0913  # the options of the command
    path: str | Path,
    output: str | Path,
    to: str,
    *,
    lossy: bool = False,
    dtype: str = "auto",
    overwrite: bool = False,
    shard_size: str | int | None = None,
    progress: Progress | None = None,
) -> Conversion:
    """Write the quantized model at `path` to `output` in another layout; its values stay as they are.

    Args:
        path: a folder in a layout that fewbit reads, or a `.gguf` file.
        output: where to write; it appears complete or not at all.
        to: `compressed-tensors`, `gptq`, `awq` or `gguf`.
        lossy: round to nearest where the layout does not hold the values, instead of refusing.
        dtype: for a layout that leaves it open the type of scales: `float32`, `float16`, `bfloat16`; `auto` is theirs.
        overwrite: replace a model folder.
        shard_size: the most bytes of tensors in a file, as for `Result.save`.
        progress: shows how far it is.

    Raises:
        PlanError: a layer that the layout cannot hold without loss; every such layer that its scheme tells is named.
        CheckpointError: a source that cannot be read, an output that cannot be written.
        NotYetError: a GGUF file of an architecture or with a type of tensors that is not read.

    """
    target, output, progress = checkpoint_format(to), Path(output), progress or Silent()
    if dtype not in _TYPES:
        raise RecipeError(f"dtype {dtype!r} is none of {', '.join(_TYPES)}")
    require_free_output(output, overwrite=overwrite, parts=shard_size is not None)
    shard_bytes = None if shard_size is None else byte_size(shard_size)
    source = _source(path, to)
    if output.exists() and output.resolve() == source.path.resolve():
        raise RecipeError(f"{output} is the model that is read; write to another folder")
    work = _Work(ConversionPlan.of(source, target, dtype, lossy=lossy))
    with progress.phase("write"):
        written = work.write(output, overwrite=overwrite, shard_bytes=shard_bytes)
    with progress.phase("check"):
        require_equal(target, written, work.digests)
    path = output if shard_bytes is None else written
    return Conversion(source=source.name, path=path, to=target.name, layers=work.done)


def _source(path: str | Path, to: str) -> CheckpointFolder:
    """Return the checkpoint to read; a file's tensors are taken as they are stored, not as the floats of a model."""
    file: Path | None = Path(path)
    if not (Path(path).suffix in ONE_FILE and Path(path).is_file()):
        source = open_source(str(path))
        stored = isinstance(source, GgufModel) and not isinstance(source, RotatedDemo)  # smollm2 is a file
        file = source.path if stored else None  # type: ignore[attr-defined]
    if file and file.suffix in ONE_FILE:
        if ONE_FILE[file.suffix] == to:
            raise RecipeError(f"{path} is a {to} file already; copy it, or name another layout with --to")
        return CheckpointFolder(file)
    if not isinstance(source, CheckpointFolder):
        raise PlanError(f"{source.name} is not quantized; use fewbit quantize --to {to}")
    return source


class _Work:
    """Turns values into those of the target, and remembers what they must read back as."""

    def __init__(self, plan: ConversionPlan) -> None:
        self._plan = plan
        self._checkpoint = plan.source.checkpoint
        self._done: dict[str, ConvertedLayer] = {}
        #: Of every tensor by name.
        self.digests: dict[str, bytes] = {}

    @property
    def done(self) -> tuple[ConvertedLayer, ...]:
        """What became of the layers, in the order of the model."""
        return tuple(self._done[name] for name in self._plan.planned if name in self._done)

    def write(self, output: Path, *, overwrite: bool, shard_bytes: int | None) -> Path:
        """Write everything, complete or not at all, and return where."""
        manifest = replace(self._plan.manifest, shard_bytes=shard_bytes)
        writer = self._plan.target.open(output, manifest, overwrite=overwrite)
        try:
            for name, value in self._checkpoint.tensors():
                own = self._plan.planned.get(name)
                if own is None:
                    self.digests[name] = digest_of(value)
                    writer.put(name, value)
                elif own.plain and isinstance(value, QTensor):
                    writer.put(own.plain.name, self._plain(name, to_numpy(value.dequantize()), own))
                elif own.quantized and isinstance(value, QTensor):
                    writer.put(name, self._converted(name, value, own, own.quantized.scheme))
                elif own.quantized and own.quantized.input is not None:
                    writer.put(name, value)
            return writer.close()
        except OSError as error:
            raise CheckpointError(f"cannot write {output}: {error.strerror or error}") from error
        finally:
            writer.abort()

    def _plain(self, name: str, values: Any, own: Planned) -> Any:
        """Return the numbers of an embedding or a head in the type that the plan has for them."""
        assert own.plain is not None
        with np.errstate(over="ignore"):
            stored = values.astype(numpy_type(own.plain.dtype))
        rounded = stored.astype(np.float32)
        if not np.isfinite(rounded).all():
            raise PlanError(f"{name}: {own.plain.dtype} does not hold {np.abs(values).max():g}; use --dtype bfloat16")
        same = np.array_equal(rounded, values)
        self.digests[own.plain.name] = digest_of(stored)
        self._say(name, own, None if same else fidelity(values, rounded).sqnr)
        return stored

    def _converted(self, name: str, value: QTensor, own: Planned, scheme: Scheme) -> QTensor:
        """Return a weight as the target holds it."""
        values, sqnr = to_numpy(value.dequantize()), None
        try:
            if own.loss is not None:
                raise CheckpointError(own.loss)
            qtensor = self._plan.target.restated(value, scheme)
        except CheckpointError as error:
            if not self._plan.lossy:
                raise PlanError(f"{name}: {error}; --lossy rounds it anew") from error
            qtensor, sqnr = self._rounded(value, values, scheme)
        self.digests[name] = digest_of(qtensor if sqnr is not None else values)
        self._say(name, own, sqnr)
        return qtensor

    def _rounded(self, value: QTensor, values: Array, scheme: Scheme) -> tuple[QTensor, float]:
        """Return the nearer of two and its SQNR: ranges searched anew, or only scales rounded, where that will do."""
        found = [replace(quantize(values, scheme.searched()), scheme=scheme)]
        with contextlib.suppress(CheckpointError):
            whole = in_whole_numbers(value)
            if not isinstance(whole.scale, QTensor):
                kept = replace(whole, scale=_nearest(whole.scale, scheme))
                found.append(self._plan.target.restated(kept, scheme))
        told = [(own, fidelity(values, own.dequantize()).sqnr) for own in found]
        return max(told, key=lambda pair: pair[1])

    def _say(self, name: str, own: Planned, sqnr: float | None) -> None:
        dropped = own.quantized is None or own.quantized.input is None
        given = self._checkpoint.inputs.get(name) if dropped else None
        unrounded = input_scheme_to_text(given) if given else None
        sqnr = sqnr if sqnr != inf else None
        self._done[name] = ConvertedLayer(name, str(own.before), own.after, sqnr, unrounded)


def _nearest(scale: Array, scheme: Scheme) -> Array:
    """Return scales of either sign as the type of `scheme` holds them."""
    if scheme.scale_type is None:
        return scale
    with np.errstate(over="ignore"):
        return scale.astype(numpy_type(scheme.scale_type)).astype(np.float32)
