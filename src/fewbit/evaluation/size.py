"""Sizes in bytes: on disk, and in words."""

from __future__ import annotations

from pathlib import Path

from fewbit.part_names import beside


def bytes_on_disk(path: Path) -> int:
    """Return the bytes of a file and its other parts, or of the weight files of a folder: what a runtime loads."""
    if path.is_file():
        return sum(part.stat().st_size for part in beside(path))
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def megabytes(size: int) -> str:
    """Return a size for people, in GB, MB or kB, each a thousand of the next."""
    if size >= 1e10:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
