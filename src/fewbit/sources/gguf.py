"""A GGUF file: transformers reads its configuration, weights and tokenizer. Its header is checked here first."""

from __future__ import annotations

from pathlib import Path

from fewbit.errors import SourceError
from fewbit.sources.huggingface import TransformersModel

_MAGIC = b"GGUF"


def gguf_file(path: Path) -> TransformersModel:
    """Return the source for the GGUF file at `path`.

    Raises:
        SourceError: not a GGUF file of version 2 or 3.

    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise SourceError(f"cannot read {path}: {error.strerror}") from error
    if head[:4] != _MAGIC:
        raise SourceError(f"{path} is not a GGUF file; a model is a Hugging Face folder, a .gguf file or smollm2")
    version = int.from_bytes(head[4:], "little")
    if version not in (2, 3):
        raise SourceError(f"{path} is GGUF of version {version}; versions 2 and 3 are read")
    return TransformersModel(path.absolute().parent, path.name)
