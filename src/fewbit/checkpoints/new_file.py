"""An output file that appears whole or not at all, written at any place of it beside its final name, then renamed."""

from __future__ import annotations

import glob
import secrets
from pathlib import Path

from fewbit.checkpoints.folder import to_disk, umask, unfinished
from fewbit.errors import CheckpointError


class NewFile:
    """A file under construction; `path` is where to write, `commit` moves it to `final`."""

    def __init__(self, final: Path, *, overwrite: bool = False) -> None:
        # A link to a model stays a link: what it leads to is replaced.
        self.final = Path(final).resolve() if Path(final).is_symlink() else Path(final).absolute()
        self.overwrite = overwrite
        require_free_file(self.final, overwrite=overwrite)
        self.path = self.final.with_name(f".{self.final.name}.{secrets.token_hex(4)}.partial")
        unfinished[self.path] = self
        try:
            self.final.parent.mkdir(parents=True, exist_ok=True)
            self.path.touch(mode=0o600, exist_ok=False)
        except OSError as error:
            del unfinished[self.path]
            raise CheckpointError(f"cannot create a file beside {self.final}: {error.strerror}") from error

    def commit(self) -> Path:
        """Move the file to its final name and return it."""
        require_free_file(self.final, overwrite=self.overwrite)
        self.path.chmod(0o666 & ~umask())
        to_disk(self.path)
        try:
            self.path.replace(self.final)
        finally:
            self.remove()
        to_disk(self.final.parent)
        return self.final

    def remove(self) -> None:
        """Remove what was written and not committed."""
        self.path.unlink(missing_ok=True)
        unfinished.pop(self.path, None)


def require_free_file(path: Path, *, overwrite: bool, parts: bool = False) -> None:
    """Raise `CheckpointError` unless a file can be put at `path`, or with `parts` several, however many."""
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder; give the name of a file")
    if path.exists() and not overwrite:
        raise CheckpointError(f"{path} exists; choose another name or pass overwrite (--overwrite)")
    for part in path.parent.glob(f"{glob.escape(path.stem)}-00001-of-?????{path.suffix}") if parts else ():
        require_free_file(part, overwrite=overwrite)
