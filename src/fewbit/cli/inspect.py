"""`fewbit inspect`: every tensor of a model with its format, bytes and range."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import asdict, dataclass
from shutil import get_terminal_size
from typing import Annotated, Any

import typer

from fewbit.cli.console import Terminal
from fewbit.cli.histogram import histogram_lines
from fewbit.cli.words import AsJson, Model, Quiet

#: Columns of a histogram, at most.
_WIDEST = 100


@dataclass(frozen=True)
class _Row:
    name: str
    shape: tuple[int, ...]
    #: Notation of the scheme, or the float type.
    form: str
    nbytes: int
    lowest: float
    highest: float
    quantized: bool = False
    #: Numbers by their place between the lowest and the highest; empty where nobody asked, or where one is not finite.
    histogram: tuple[int, ...] = ()


@dataclass(frozen=True)
class _Look:
    """What is wanted of the tensors of a model."""

    pattern: re.Pattern[str]
    #: Bins of a histogram; 0: there is to be none.
    bins: int = 0

    def row(
        self, name: str, shape: tuple[int, ...], form: str, nbytes: int, numbers: Any, *, quantized: bool = False
    ) -> _Row:
        """Return the row of a tensor with these numbers."""
        if not numbers.size:
            return _Row(name, shape, form, nbytes, math.nan, math.nan, quantized)
        low, high = float(numbers.min()), float(numbers.max())
        drawn = self.bins and self.pattern.search(name) and math.isfinite(high - low)
        return _Row(name, shape, form, nbytes, low, high, quantized, self._counts(numbers, low, high) if drawn else ())

    def _counts(self, numbers: Any, low: float, high: float) -> tuple[int, ...]:
        import numpy as np

        counts, _ = np.histogram(numbers, bins=self.bins, range=(low, high))
        return tuple(counts.tolist())


def inspect(
    model: Model,
    match: Annotated[str, typer.Option(help="Only tensors whose name this regular expression finds.")] = "",
    histogram: Annotated[
        bool, typer.Option("--histogram", help="Draw below each tensor how its values are distributed.")
    ] = False,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Print every tensor of MODEL: shape, format, bytes, smallest and largest value, and what is left in float."""
    from fewbit.errors import RecipeError
    from fewbit.sources import open_source

    try:
        pattern = re.compile(match)
    except re.error as error:
        raise RecipeError(f"--match {match!r} is not a regular expression: {error}") from error
    terminal = Terminal(quiet=quiet, as_json=as_json)
    with terminal.phase("read"):
        source = open_source(model)
        look = _Look(pattern, min(max(get_terminal_size().columns - 2, 20), _WIDEST) if histogram else 0)
        rows = [row for row in _rows_of(source)(source, look) if pattern.search(row.name)]
    quantized = [row for row in rows if row.quantized]
    total = sum(row.nbytes for row in rows)
    width = max([len(row.name) for row in rows], default=10)
    lines = [f"{'tensor':{width}}  {'shape':>14}  {'format':<18} {'bytes':>12} {'lowest':>12} {'highest':>12}"]
    for row in rows:
        lines.append(
            f"{row.name:{width}}  {'x'.join(map(str, row.shape)):>14}  {row.form:<18} {row.nbytes:>12,} "
            f"{row.lowest:>12.5g} {row.highest:>12.5g}"
        )
        drawn = histogram_lines(row.histogram, row.lowest, row.highest) if row.histogram else []
        lines += [f"  {line}".rstrip() for line in drawn]
    lines.append(
        f"{len(rows)} tensors, {len(quantized)} quantized, {len(rows) - len(quantized)} float; {total:,} bytes"
    )
    data = {"model": model, "bytes": total, "tensors": [asdict(row) for row in rows]}
    terminal.result("\n".join(lines), data)


def _rows_of(source: Any) -> Callable[[Any, _Look], list[_Row]]:
    """Return what lists the tensors of a kind of source."""
    from fewbit.sources.checkpoint import CheckpointFolder
    from fewbit.sources.gguf import GgufModel
    from fewbit.sources.onnx import OnnxSource

    known = {OnnxSource: _graph_rows, CheckpointFolder: _checkpoint_rows, GgufModel: _gguf_rows}
    return next((rows for kind, rows in known.items() if isinstance(source, kind)), _float_rows)


def _checkpoint_rows(source: Any, look: _Look) -> list[_Row]:
    import numpy as np

    from fewbit.activation import Activation
    from fewbit.qtensor import QTensor
    from fewbit.schemes.notation import input_scheme_to_text

    checkpoint = source.checkpoint
    nbytes: dict[str, int] = {}
    for stored in checkpoint.stored:
        owner = stored.name.rpartition(".")[0]
        key = owner if owner in checkpoint.schemes and not stored.name.endswith(".bias") else stored.name
        nbytes[key] = nbytes.get(key, 0) + stored.nbytes
    rows = []
    for name, value in checkpoint.tensors():
        if isinstance(value, Activation):  # said beside its weight
            continue
        scheme = str(value.scheme) if isinstance(value, QTensor) else value.dtype.name
        if isinstance(value, QTensor) and name in checkpoint.inputs:
            scheme += f", input {input_scheme_to_text(checkpoint.inputs[name])}"
        numbers = value.dequantize() if isinstance(value, QTensor) else np.asarray(value, dtype=np.float32)
        coded = isinstance(value, QTensor)
        rows.append(look.row(name, tuple(value.shape), scheme, nbytes[name], numbers, quantized=coded))
    return rows


def _graph_rows(source: Any, look: _Look) -> list[_Row]:
    """Rows of the constants of an ONNX graph, one that several layers share counted at the first."""
    import numpy as np

    from fewbit.frontends.onnx.stored import constants
    from fewbit.onnx_graph.constants import tensor_of

    rows: list[_Row] = []
    owners: set[int] = set()
    for name, tensor in constants(source.load()):
        tied = id(tensor_of(tensor)) in owners
        owners.add(id(tensor_of(tensor)))
        form = tensor.dtype.numpy().name
        numbers = np.zeros(0) if form == "object" else np.asarray(tensor.numpy(), dtype=np.float32)
        form, nbytes = (f"{form}, tied", 0) if tied else (form, tensor.nbytes)
        rows.append(look.row(name, tuple(numbers.shape), form, nbytes, numbers))
    return rows


def _gguf_rows(source: Any, look: _Look) -> list[_Row]:
    """Rows of a GGUF file, each tensor in the type that it has there."""
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType

    from fewbit.checkpoints.gguf.stored_kind import FLOATS
    from fewbit.sources.gguf_numbers import read_numbers

    rows, names = [], source.names
    for own in source.header.tensors:
        in_blocks = GGML_QUANT_SIZES[GGMLQuantizationType[own.kind]][0] > 1
        form = FLOATS[own.kind].name if own.kind in FLOATS else own.kind.lower()
        numbers = read_numbers(source.path, source.header, own)
        rows.append(look.row(names[own.name], own.shape, form, own.nbytes, numbers, quantized=in_blocks))
    return rows


def _float_rows(source: Any, look: _Look) -> list[_Row]:
    """Rows of a model folder that is not quantized."""
    import numpy as np

    from fewbit.checkpoints.safetensors_file import read_tensors
    from fewbit.checkpoints.safetensors_folder import files_of

    return [
        look.row(name, tuple(array.shape), array.dtype.name, array.nbytes, np.asarray(array, dtype=np.float32))
        for file in files_of(source.folder)
        for name, array in read_tensors(file)
    ]
