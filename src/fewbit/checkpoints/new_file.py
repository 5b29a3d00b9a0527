"""An output file that appears whole or not at all, written at any place of it beside its final name, then renamed."""

from __future__ import annotations

import glob
from pathlib import Path

from fewbit.checkpoints.folder import Unfinished, require_free, to_disk, umask
from fewbit.errors import CheckpointError
from fewbit.result import is_file_name


class NewFile(Unfinished):
    """A file under construction."""

    kind = "file"

    def require_free(self) -> None:
        """Raise `CheckpointError` unless a file can be put at `final`."""
        require_free_file(self.final, overwrite=self.overwrite)

    def begin(self) -> None:
        """Make an empty file."""
        self.path.touch(mode=0o600, exist_ok=False)

    def to_final(self) -> None:
        """Move the file to its name, over what stood there."""
        self.path.chmod(0o666 & ~umask())
        to_disk(self.path)
        self.path.replace(self.final)

    def discard(self) -> None:
        """Remove the file."""
        self.path.unlink(missing_ok=True)


def require_free_file(path: Path, *, overwrite: bool, parts: bool = False) -> None:
    """Raise `CheckpointError` unless a file can be put at `path`, or with `parts` several, however many."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} exists; choose another name or pass overwrite (--overwrite)")
    for part in path.parent.glob(f"{glob.escape(path.stem)}-00001-of-?????{path.suffix}") if parts else ():
        require_free_file(part, overwrite=overwrite)


def require_free_output(path: Path, *, overwrite: bool, parts: bool = False) -> None:
    """Raise `CheckpointError` unless a file (with `parts` several) or a folder, as `path` says, can be put there."""
    if is_file_name(path):
        require_free_file(path, overwrite=overwrite, parts=parts)
    else:
        require_free(path, overwrite=overwrite)
