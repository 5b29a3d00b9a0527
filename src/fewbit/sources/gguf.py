"""A GGUF file: transformers reads its configuration, weights and tokenizer. Its header is checked here first."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from fewbit.checkpoints.gguf_header import GgufHeader, read_gguf_header
from fewbit.errors import CheckpointError, NotYetError, SourceError
from fewbit.sources.huggingface import TransformersModel
from fewbit.sources.weights import require_plausible, weights_of_gguf


def gguf_file(path: Path) -> TransformersModel:
    """Return the source for the GGUF file at `path`.

    Raises:
        SourceError: not a GGUF file, one that does not hold what it says, or no model.
        NotYetError: tensors of a type that is not read.

    """
    try:
        header = read_gguf_header(path)
    except CheckpointError as error:
        raise SourceError(str(error)) from error
    _require_model(header, path)
    _require_readable(header, path)
    weights = weights_of_gguf(header)
    require_plausible(header.values, weights, str(path))
    return TransformersModel(path.absolute().parent, path.name, weights)


def _require_model(header: GgufHeader, path: Path) -> None:
    """Raise `SourceError` unless the file holds a model, the whole of it and nothing beside it."""
    values = header.values
    kind, parts = values.get("general.type", "model"), values.get("split.count", 1)
    if kind != "model":
        raise SourceError(f"{path} holds no model: its general.type is {kind!r:.80}")
    if isinstance(parts, int) and parts > 1:
        raise SourceError(f"{path} is one of {parts} parts of a model; join them with llama-gguf-split --merge")
    architecture = values.get("general.architecture")
    if not isinstance(architecture, str):
        raise SourceError(f"{path} names no architecture (general.architecture); it cannot be run")
    if not header.tensors:
        raise SourceError(f"{path} holds no tensor; is it a file of vocabulary only?")
    blocks = values.get(f"{architecture}.block_count")
    for tensor in header.tensors:
        match = re.match(r"blk\.([0-9]+)\.", tensor.name)
        if match and isinstance(blocks, int) and int(match[1]) >= blocks:
            raise SourceError(
                f"{path} says {architecture}.block_count = {blocks} and holds {tensor.name}; "
                "transformers would leave that tensor out"
            )


def _require_readable(header: GgufHeader, path: Path) -> None:
    """Raise `NotYetError` for tensors that transformers would not read, or would read as other numbers."""
    for tensor in header.tensors:
        if not _is_decoded(tensor.kind):
            raise NotYetError(
                f"{path}: tensor {tensor.name} is of type {tensor.kind}, which the gguf package cannot read"
            )
        if tensor.name.endswith(".scale"):
            raise NotYetError(f"{path}: {tensor.name} multiplies a weight, which transformers does not do")


@cache
def _is_decoded(kind: str) -> bool:
    """Whether the gguf package turns blocks of a type into numbers: it is asked to decode one block of zeros."""
    import numpy as np
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    form: Any = GGMLQuantizationType[kind]
    try:
        dequantize(np.zeros((1, GGML_QUANT_SIZES[form][1]), dtype=np.uint8), form)
    except NotImplementedError:
        return False
    return True
