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
        self.final = Path(final)
        self.overwrite = overwrite
        self._require_free()
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
        self._require_free()
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

    def _require_free(self) -> None:
        if not self.final.exists():
            return
        if not self.overwrite:
            raise CheckpointError(f"{self.final} exists; choose another name or pass overwrite (--overwrite)")
        # Only what fewbit or a Hugging Face tool wrote is ever replaced: a mistyped name must not cost a home folder.
        if not self.final.is_dir() or (any(self.final.iterdir()) and not (self.final / "config.json").is_file()):
            raise CheckpointError(f"{self.final} is not a model folder and is not overwritten; remove it yourself")


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
