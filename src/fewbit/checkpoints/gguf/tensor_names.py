"""Where a tensor of transformers stands in a GGUF file, and in which form; and back.

Llama and its kin: a head whose rows are 0 1 2 | 3 4 5 (halves) is stored as 0 3 1 4 2 5 (neighbours), rows of scales
alike. Names are those of the gguf package.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from fewbit.checkpoints.gguf.architecture import Architecture, architecture_of
from fewbit.errors import CheckpointError

_Rows = np.ndarray[Any, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """Where a tensor stands in the file."""

    name: str
    #: Heads whose rows are put in the order of neighbours; 0: rows stay.
    heads: int = 0
    #: Whether 1 is added.
    adds_one: bool = False
    #: Whether it is the table of positions, which is never stored in few bits.
    positions: bool = False

    def ordered(self, rows: _Rows) -> _Rows:
        """Return rows, of numbers or of blocks, in the order of the file."""
        if not self.heads:
            return rows
        return rows.reshape(self.heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

    def restored(self, rows: _Rows) -> _Rows:
        """Return rows of the file in the order of the model."""
        if not self.heads:
            return rows
        return rows.reshape(self.heads, -1, 2, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)


def places(architecture: Architecture, configuration: Mapping[str, Any], names: Iterable[str]) -> dict[str, Place]:
    """Return the places of tensors by their full names in the model.

    Raises:
        CheckpointError: a tensor that the family has no place for.

    """
    known = _places(architecture, configuration)
    found = {}
    for name in names:
        if name not in known:
            raise CheckpointError(f"tensor {name} has no place in a GGUF file of the architecture {architecture.name}")
        found[name] = known[name]
    return found


def origins(architecture: Architecture, configuration: Mapping[str, Any]) -> dict[str, tuple[str, Place]]:
    """Return the full names in the model of what a file may hold, with their places, by their names in the file."""
    return {place.name: (name, place) for name, place in _places(architecture, configuration).items()}


def file_names(configuration: Mapping[str, Any]) -> dict[str, str]:
    """Return what a file calls the tensors of a model, by their full names in the model.

    Raises:
        CheckpointError: a family that GGUF files are not written for.

    """
    return {name: place.name for name, place in _places(architecture_of(configuration), configuration).items()}


def scale_name(weight: str) -> str:
    """Return the name of the tensor that multiplies a weight as a whole.

    >>> scale_name("blk.0.attn_q.weight")
    'blk.0.attn_q.scale'
    """
    return f"{weight.removesuffix('.weight')}.scale"


def _places(architecture: Architecture, configuration: Mapping[str, Any]) -> dict[str, Place]:
    from gguf import MODEL_ARCH_NAMES, get_tensor_name_map

    kind = next(own for own, name in MODEL_ARCH_NAMES.items() if name == architecture.name)
    blocks = int(configuration.get("num_hidden_layers") or configuration.get("n_layer") or 0)
    table = get_tensor_name_map(kind, blocks)
    found = {}
    for pattern in architecture.modules:
        for module in [pattern.format(block) for block in range(blocks)] if "{}" in pattern else [pattern]:
            for suffix in (".weight", ".bias"):
                name = table.get_name(module + suffix, try_suffixes=(".weight", ".bias"))
                if name is None:  # of Gemma a head, which is always tied
                    continue
                found[module + suffix] = Place(
                    name,
                    heads=_heads(architecture, configuration, module),
                    adds_one=architecture.adds_one and name.endswith("norm.weight"),
                    positions=name == "position_embd.weight",
                )
    return found


def _heads(architecture: Architecture, configuration: Mapping[str, Any], module: str) -> int:
    if not architecture.neighbours or not module.endswith((".q_proj", ".k_proj")):
        return 0
    heads = configuration["num_attention_heads"]
    return int(heads if module.endswith(".q_proj") else configuration.get("num_key_value_heads") or heads)
