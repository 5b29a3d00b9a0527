"""Sizes in bytes: on disk, and in words."""

from __future__ import annotations

from pathlib import Path


def bytes_on_disk(path: Path) -> int:
    """Return the bytes of a file, or of the weight files of a folder (what a runtime has to load)."""
    if path.is_file():
        return path.stat().st_size
    return sum(file.stat().st_size for file in path.glob("*.safetensors"))


def megabytes(size: int) -> str:
    """Return a size for people, in GB, MB or kB, each a thousand of the next."""
    if size >= 1e10:
        return f"{size / 1e9:.1f} GB"
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"
