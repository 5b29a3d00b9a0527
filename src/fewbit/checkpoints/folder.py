"""An output folder that appears whole or not at all: written beside its final name, then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

from fewbit.errors import CheckpointError


class NewFolder:
    """A folder under construction; `path` is where to write, `commit` moves it to `final`."""

    def __init__(self, final: Path, *, overwrite: bool = False) -> None:
        # A link to a model folder stays a link: what it leads to is replaced.
        self.final = Path(final).resolve() if Path(final).is_symlink() else Path(final)
        self.overwrite = overwrite
        require_free(self.final, overwrite=self.overwrite)
        try:
            self.final.absolute().parent.mkdir(parents=True, exist_ok=True)
            self.path = Path(
                tempfile.mkdtemp(prefix=f".{self.final.name}.", suffix=".partial", dir=self.final.absolute().parent)
            )
        except OSError as error:
            raise CheckpointError(f"cannot create a folder beside {self.final}: {error.strerror}") from error

    def write(self, name: str, content: bytes) -> None:
        """Write a file of plain name; a name that leaves the folder is refused."""
        if Path(name).name != name or name in ("", ".", ".."):
            raise CheckpointError(f"file name {name!r} is not a plain name; nothing outside the folder is written")
        (self.path / name).write_bytes(content)

    def commit(self) -> Path:
        """Move the folder to its final name and return it; what stood there goes last, after the move succeeded."""
        require_free(self.final, overwrite=self.overwrite)
        self.path.chmod(0o777 & ~_umask())
        if not self.final.exists():
            self.path.rename(self.final)
            return self.final
        retired = self.path.with_suffix(".replaced")
        self.final.rename(retired)
        try:
            self.path.rename(self.final)
        except OSError:
            retired.rename(self.final)
            raise
        shutil.rmtree(retired)
        return self.final

    def remove(self) -> None:
        """Remove everything written so far."""
        shutil.rmtree(self.path, ignore_errors=True)


def require_free(final: Path, *, overwrite: bool) -> None:
    """Raise `CheckpointError` unless a folder can be put at `final`: nothing is there, or a model to be replaced."""
    if not final.exists():
        return
    if not overwrite:
        raise CheckpointError(f"{final} exists; choose another name or pass overwrite (--overwrite)")
    # Only what fewbit or a Hugging Face tool wrote is ever replaced: a mistyped name must not cost a home folder.
    if not final.is_dir() or (any(final.iterdir()) and not (final / "config.json").is_file()):
        raise CheckpointError(f"{final} is not a model folder and is not overwritten; remove it yourself")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
