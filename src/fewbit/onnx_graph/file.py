"""Read and write ONNX files: checked before use, weights mapped from disk, external data inside the file's folder only.

A protobuf holds 2 GiB at most; what is larger keeps its numbers in `NAME.data` beside it (onnx, ExternalData.md).
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from fewbit.errors import CheckpointError, SourceError
from fewbit.onnx_graph.proportion import require_light

#: Oldest version of the ai.onnx operators that is read: the first with scales for each channel.
OPSET = 13
#: Bytes of weights from which a file gets external data; protobuf stops at 2 GiB, structure included.
INLINE = 1 << 30


def read_model(path: str | Path, oldest: int = OPSET) -> ir.Model:
    """Return the model at `path`; numbers in external files stay on disk until they are asked for.

    Raises:
        SourceError: no file, no ONNX model, an invalid graph, an opset before `oldest`, or external data that is
            missing, short or elsewhere.

    """
    path = Path(path)
    try:
        content = path.read_bytes()
        require_light(content, str(path))
        proto = onnx.load_model_from_string(content)
        del content
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    except DecodeError as error:
        raise SourceError(f"{path} is no ONNX file, or cut short: {error}; fetch or export it again") from error
    model = _parsed(proto, str(path), oldest)
    ir.external_data.set_base_dir(model.graph, path.parent.resolve())
    tensors = list(_tensors(model))
    for tensor in tensors:
        if isinstance(tensor, ir.ExternalTensor):
            _require_data(tensor, path)
    try:
        onnx.checker.check_model(path)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise SourceError(f"{path} is not valid ONNX: {_first_line(error)}; export it again") from error
    for tensor in tensors:
        if not isinstance(tensor, ir.ExternalTensor):
            _require_numbers(tensor, path)
    return model


def checked_model(model: onnx.ModelProto | ir.Model, name: str) -> ir.Model:
    """Return a copy of a model in memory, called `name` in messages; its numbers are shared.

    Raises:
        SourceError: an invalid graph.

    """
    if isinstance(model, ir.Model):
        _require_opset(model, name)
        try:
            return model.clone()
        except RuntimeError as error:
            raise SourceError(
                f"{name} is not valid ONNX: its nodes form a cycle, or stand in no order in which they can run; "
                "call model.graph.sort()"
            ) from error
    parsed = _parsed(model, name)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError) as error:
        raise SourceError(f"{name} is not valid ONNX: {_first_line(error)}; export it again") from error
    return parsed


def _parsed(proto: onnx.ModelProto, name: str, oldest: int = OPSET) -> ir.Model:
    """Return a model that is not checked yet; raises `SourceError` for one that holds no graph that can be read."""
    if not proto.graph.node or not proto.opset_import:
        raise SourceError(f"{name} holds no graph of operators; is it an ONNX model?")
    try:
        model = ir.from_proto(proto)
    except (ValueError, TypeError, KeyError, RuntimeError) as error:  # onnx-ir wraps them
        raise SourceError(f"{name} is not valid ONNX: {_first_line(error)}; export it again") from error
    _require_opset(model, name, oldest)
    return model


def _require_opset(model: ir.Model, name: str, oldest: int = OPSET) -> None:
    version = model.opset_imports.get("", 0)
    if version < oldest:
        raise SourceError(
            f"{name} is of opset {version}, older than {oldest}; raise it with onnx.version_converter.convert_version"
        )


def write_model(model: ir.Model, path: str | Path, *, overwrite: bool = False) -> Path:
    """Write `model` to `path`, with its numbers in `NAME.data` beside it where they are many; return the path.

    It is written into a hidden folder beside `path` and moved when complete.

    Raises:
        CheckpointError: `path` exists, or cannot be written.

    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the name of a file, such as {path / 'model.onnx'}")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} exists; choose another name, or overwrite it")
    data = path.with_name(f"{path.name}.data")
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    large = weight_bytes(model) > INLINE
    try:
        partial.mkdir(parents=True)
        ir.save(model, partial / path.name, external_data=data.name if large else None)
        if large:
            (partial / data.name).replace(data)
        (partial / path.name).replace(path)
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def weight_bytes(model: ir.Model) -> int:
    """Return the bytes of all initializers, those of subgraphs too."""
    return sum(
        value.const_value.nbytes
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def bytes_on_disk(model: ir.Model, path: Path) -> int:
    """Return the bytes of the file at `path`, which holds `model`, and of the files with its numbers."""
    beside = {path.parent / str(own.location) for own in _tensors(model) if isinstance(own, ir.ExternalTensor)}
    return sum(file.stat().st_size for file in (path, *beside))


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    """Yield every tensor of the model, in initializers and in attributes, of functions and subgraphs too."""
    for graph in model.graphs():
        yield from (own.const_value for own in graph.initializers.values() if own.const_value is not None)
    every = [*model.graphs(), *(graph for own in model.functions.values() for graph in (own, *own.subgraphs()))]
    for node in (node for graph in every for node in graph):
        for attribute in node.attributes.values():
            # The value is None of one that refers to an attribute of its function, and of one that holds nothing.
            if attribute.type == ir.AttributeType.TENSOR and attribute.value is not None:
                yield attribute.value
            elif attribute.type == ir.AttributeType.TENSORS:
                yield from attribute.value or ()


def _require_numbers(tensor: ir.TensorProtocol, path: Path) -> None:
    """Raise `SourceError` unless a tensor in the file holds the numbers of its shape."""
    try:
        found = tensor.numpy()
    except (ValueError, TypeError, AssertionError, OverflowError) as error:  # onnx-ir asserts
        raise SourceError(
            f"{path}: tensor {str(tensor.name)!r:.80} of type {tensor.dtype} does not hold the numbers of its shape "
            f"{list(tensor.shape)!r:.80}: {error}; export it again"
        ) from error
    if found.shape != tuple(tensor.shape):
        raise SourceError(f"{path}: tensor {str(tensor.name)!r:.80} has other numbers than its shape; export it again")


def _require_data(tensor: ir.ExternalTensor, path: Path) -> None:
    """Raise `SourceError` where the numbers of `tensor` are missing, outside of the folder, or cut short."""
    folder, location = path.parent.resolve(), str(tensor.location)
    what = f"{path}: tensor {str(tensor.name)!r:.80} lies in {location!r:.80}"
    # No path holds a NUL: it is an error to ask where that leads.
    if not location or "\0" in location or not (data := (folder / location).resolve()).is_relative_to(folder):
        raise SourceError(f"{what}, outside of the model's folder; put both files into one folder")
    if not data.is_file():
        raise SourceError(f"{what}, which is missing; put it beside the model")
    if tensor.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED) or (tensor.offset or 0) < 0:
        raise SourceError(f"{what} at {tensor.offset} as {tensor.dtype}, where no numbers are; export it again")
    if any(size < 0 for size in tensor.shape.numpy()):
        raise SourceError(f"{what} with the shape {list(tensor.shape)!r:.80}, which nothing has; export it again")
    end = (tensor.offset or 0) + tensor.nbytes
    if end > data.stat().st_size:
        raise SourceError(f"{what} up to byte {end}, but that has {data.stat().st_size}; fetch it again")


def _first_line(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
