"""Names of tensors: no file names, but tools downstream make files and shell words of them, so some are refused."""

from __future__ import annotations

import re

from fewbit.errors import CheckpointError

#: Names take some dozens of characters.
LONGEST = 1024
#: What safetensors reserves for its own use.
RESERVED = "__metadata__"


def require_plain(name: str) -> None:
    """Raise `CheckpointError` for a name that is empty, cannot be printed, or reads as a path out of a folder.

    >>> require_plain("model.layers.0.mlp.up_proj.weight")
    >>> require_plain("../up")
    Traceback (most recent call last):
    fewbit.errors.CheckpointError: tensor name '../up' reads as a path out of its folder; rename the tensor
    """
    if not name:
        raise CheckpointError("a tensor has an empty name; name it")
    if len(name) > LONGEST:
        raise CheckpointError(
            f"tensor name {name[:40]!r}... has {len(name)} characters, more than {LONGEST}; rename it"
        )
    # Control characters, marks that turn the direction of writing, halves of surrogate pairs.
    if not name.isprintable():
        raise CheckpointError(f"tensor name {name!r} holds characters that do not print; rename the tensor")
    if name[0] in "/~" or "\\" in name or ".." in name.split("/") or re.match("[A-Za-z]:/", name):
        raise CheckpointError(f"tensor name {name!r} reads as a path out of its folder; rename the tensor")
    if name == RESERVED:
        raise CheckpointError(f"tensor name {name!r} is reserved by safetensors; rename the tensor")
