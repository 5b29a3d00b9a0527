"""What the weight files of a model hold, from their headers, and whether a configuration and a model fit it.

A configuration may name any size. It is held against the files before anything is built or allocated by it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from fewbit.checkpoints.gguf_header import GgufHeader
from fewbit.checkpoints.safetensors_file import stored_tensors
from fewbit.checkpoints.safetensors_folder import INDEX, ONE_FILE, files_of
from fewbit.errors import CheckpointError, SourceError

#: Keys of configurations and of GGUF that count layers, that count experts, and that are axes of some tensor.
_LAYERS = re.compile(r"(layers?|blocks?|depths?|block_count)$")
_EXPERTS = re.compile(r"(experts|expert_count)$")
_WIDTHS = re.compile(
    r"(hidden_size|intermediate_size|vocab_size|d_model|d_ff|n_embd|n_inner|embedding_length"
    r"|feed_forward_length)$"
)
#: Transformers makes two tables with a name for each.
_LABELS = re.compile(r"num_labels$")
#: What a configuration may always say: small beside what a model is, and larger than any default that goes unused.
_FEW_LAYERS, _FEW_EXPERTS, _FEW_LABELS, _NARROW = 1 << 10, 1 << 12, 1 << 16, 1 << 20
_SMALL = 1 << 20
#: Buffers without numbers in the files: tables of angles, masks.
_BUFFER_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class Weights:
    """What the headers of a model's files say."""

    #: Shapes by the names in the files.
    shapes: Mapping[str, tuple[int, ...]]
    #: Whether the names in the files are those of the model.
    named_alike: bool = True

    @property
    def numbers(self) -> int:
        """How many numbers the files hold."""
        return sum(prod(shape) for shape in self.shapes.values())

    @property
    def longest_axis(self) -> int:
        """The largest size of any tensor."""
        return max((size for shape in self.shapes.values() for size in shape), default=0)


def weights_of_folder(folder: Path) -> Weights:
    """Return what the safetensors files of a Hugging Face folder hold.

    Raises:
        SourceError: no such files, or others than transformers would read.
        CheckpointError: files that do not hold what they say.

    """
    found = sorted(path.name for path in folder.glob("*.safetensors"))
    sharded = [name for name in found if re.fullmatch(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors", name)]
    if sharded:
        raise SourceError(f"{folder} holds a distributed checkpoint ({sharded[0]}), which is not read; consolidate it")
    if found and not any((folder / name).is_file() for name in (ONE_FILE, INDEX)):
        raise SourceError(f"{folder} holds {found[0]}, but transformers reads {ONE_FILE} or {INDEX}; rename it")
    try:
        files = files_of(folder)
    except CheckpointError as error:
        if found:
            raise
        raise SourceError(str(error)) from error
    return Weights({tensor.name: tensor.shape for file in files for tensor in stored_tensors(file)})


def weights_of_gguf(header: GgufHeader) -> Weights:
    """Return what a GGUF file holds; transformers renames its tensors."""
    return Weights({tensor.name: tensor.shape for tensor in header.tensors}, named_alike=False)


def require_plausible(configuration: Mapping[str, Any], weights: Weights, where: str) -> None:
    """Raise `SourceError` for a size that the files cannot have: building by it would take all time or memory."""
    layers = max(_FEW_LAYERS, len(weights.shapes))
    experts = max(_FEW_EXPERTS, len(weights.shapes))
    width = max(_NARROW, weights.longest_axis)
    limits = (
        (_LAYERS, layers, f"the files hold {len(weights.shapes)} tensors"),
        (_EXPERTS, experts, f"the files hold {len(weights.shapes)} tensors"),
        (_LABELS, max(_FEW_LABELS, weights.longest_axis), f"the longest axis is {weights.longest_axis}"),
        (_WIDTHS, width, f"the longest axis of a tensor in the files is {weights.longest_axis}"),
    )
    for key, value in _integers(configuration):
        for pattern, most, fact in limits:
            if pattern.search(key) and value > most:
                raise SourceError(
                    f"{where} says {key} = {value}, but {fact}; configuration and weights do not belong together"
                )


def require_fit(model: Any, weights: Weights, where: str) -> None:
    """Raise `SourceError` unless `model`, without numbers, is one that the files can fill.

    Tensors that the model lacks, and those it has under other names, are found when it is loaded.
    """
    if weights.named_alike:
        for name, tensor in model.state_dict().items():
            if name in weights.shapes and weights.shapes[name] != tuple(tensor.shape):
                raise SourceError(mismatch(where, name, weights.shapes[name], tuple(tensor.shape)))
    wanted = sum(parameter.numel() for parameter in model.parameters())
    # Some models compute parameters, such as tables of positions, that no file holds.
    if wanted > 2 * weights.numbers + _SMALL:
        raise SourceError(
            f"the configuration of {where} describes a model of {wanted} numbers, its files hold {weights.numbers}; "
            "configuration and weights do not belong together"
        )
    require_small_buffers(model, where)


def require_small_buffers(model: Any, where: str) -> None:
    """Raise `SourceError` if the buffers of `model`, without numbers, would take more memory than its parameters."""
    buffers = sum(buffer.nbytes for buffer in model.buffers())
    if buffers > _BUFFER_BYTES + sum(parameter.nbytes for parameter in model.parameters()):
        raise SourceError(
            f"the configuration of {where} describes buffers of {buffers} bytes, more than the model's own numbers; "
            "is its number of positions right?"
        )


def mismatch(where: str, name: str, stored: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    """Return the message for a tensor of another shape than the model has."""
    return (
        f"{where} holds {name} of shape {list(stored)}; the model of its configuration has {list(wanted)}; "
        "configuration and weights do not belong together"
    )


def _integers(value: Any, key: str = "") -> Iterator[tuple[str, int]]:
    """Yield every integer in a configuration with the key that it stands under."""
    if isinstance(value, Mapping):
        for own, inner in value.items():
            yield from _integers(inner, str(own))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _integers(inner, key)
    elif isinstance(value, int) and not isinstance(value, bool):
        yield key, value
