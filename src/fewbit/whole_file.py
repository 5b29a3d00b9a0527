"""A file that appears whole or not at all: written beside its final name, brought to the disk, then renamed."""

from __future__ import annotations

import os
import secrets
from pathlib import Path


def write_whole(path: Path, content: bytes) -> None:
    """Write `content` to `path`, over what stood there; on any way out before the end, that stays as it was.

    Raises:
        OSError: as the system says.

    """
    path = path.resolve()  # a link stays a link: what it leads to is replaced
    partial = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        with partial.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
