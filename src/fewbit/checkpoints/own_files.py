"""Whether the files of a folder are its own: a link in a checkpoint may lead to any file of whoever reads it."""

from __future__ import annotations

from pathlib import Path

from fewbit.errors import CheckpointError, FewbitError

#: The cache of the Hugging Face hub keeps `snapshots/REVISION/NAME` as links to `blobs/HASH`.
_SNAPSHOTS, _BLOBS = "snapshots", "blobs"


def require_own(file: Path, *, error: type[FewbitError] = CheckpointError) -> None:
    """Raise `error` where `file` is a link that leads out of its folder, but for links inside of a hub's cache.

    A folder that is itself a link is what its link leads to.
    """
    if not file.is_symlink():
        return
    folder, target = file.parent.resolve(), file.resolve()
    if target.is_relative_to(folder):
        return
    if folder.parent.name == _SNAPSHOTS and target.parent == folder.parent.parent / _BLOBS:
        return
    raise error(f"{file} is a link to {target}, outside of its folder; put a copy of the file there if you trust it")
