"""Whether what was written reads back as what was to be written: digests of type, shape and bits, tensor by tensor."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.activation import Activation
from fewbit.checkpoints.gguf_parts import files_of, read_gguf
from fewbit.errors import CheckpointError
from fewbit.interfaces import CheckpointFormat
from fewbit.numerics.namespace import to_numpy
from fewbit.problems import several
from fewbit.qtensor import QTensor


def digest_of(value: Any) -> bytes:
    """Return a digest of the numbers that a tensor, quantized or not, stands for.

    Floats of 16 bits count as the float32 numbers that some layouts store.
    """
    array = to_numpy(value.dequantize()) if isinstance(value, QTensor) else np.asarray(value)
    if array.dtype.name in ("float16", "bfloat16"):
        array = array.astype(np.float32)
    told = f"{array.dtype}{array.shape}".encode()
    content = np.ascontiguousarray(array).view(np.uint8) if array.ndim else np.frombuffer(array.tobytes(), np.uint8)
    return hashlib.blake2b(content.data, key=told[:64]).digest()


def require_equal(target: CheckpointFormat, written: Path, digests: Mapping[str, bytes]) -> None:
    """Read back what was written; raise `CheckpointError`, and remove it, unless all is as it must be."""
    found = {name: digest_of(value) for name, value in target.read(written).tensors() if _is_numbers(value)}
    wrong = [name for name in digests.keys() | found.keys() if digests.get(name) != found.get(name)]
    if wrong:
        _remove(written)
        raise CheckpointError(
            f"{written} read back with other values of {several(sorted(wrong))} than were to be written, and was "
            "removed; this is a defect of fewbit"
        )


def _remove(written: Path) -> None:
    if written.is_dir():
        shutil.rmtree(written)
        return
    for file in files_of(written, read_gguf(written)):
        file.unlink()


def _is_numbers(value: Any) -> bool:
    return not isinstance(value, Activation)
