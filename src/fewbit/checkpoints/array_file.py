"""Arrays by name as one safetensors file that appears whole or not at all; reading checks the header first."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.checkpoints.folder import write_at
from fewbit.checkpoints.new_file import NewFile
from fewbit.checkpoints.safetensors_file import read_tensors
from fewbit.checkpoints.safetensors_header import create_empty
from fewbit.errors import CheckpointError
from fewbit.interfaces import BYTES, StoredTensor


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray[Any, Any]], *, overwrite: bool = False) -> Path:
    """Write `arrays` as the file at `path` and return that.

    Raises:
        CheckpointError: a type that safetensors files do not have, or a file that cannot be written.

    """
    for name, own in arrays.items():
        if str(own.dtype) not in BYTES:
            raise CheckpointError(f"{name} has type {own.dtype}, which safetensors files do not have; leave it out")
    stored = [StoredTensor(name, str(own.dtype), tuple(own.shape)) for name, own in arrays.items()]
    file = NewFile(path, overwrite=overwrite)
    try:
        begins = create_empty(file.path, stored)
        for name, own in arrays.items():
            content = np.ascontiguousarray(own).reshape(-1).view(np.uint8)
            write_at(file.path, begins[name], content.data)
        return file.commit()
    except OSError as error:
        raise CheckpointError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        file.remove()


def read_arrays(path: Path) -> dict[str, np.ndarray[Any, Any]]:
    """Return the arrays of the file at `path`, which map it.

    Raises:
        CheckpointError: it is no readable safetensors file.

    """
    if not path.is_file():
        raise CheckpointError(f"{path} is no file; fewbit.jax.save writes one")
    return dict(read_tensors(path))
