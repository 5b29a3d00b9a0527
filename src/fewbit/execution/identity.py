"""What a run is of: model, recipe, data, versions. Two runs with one identity end in the same bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fewbit.errors import CheckpointError
from fewbit.report.data import installed_versions, this_machine

#: Packages whose versions decide over bytes.
_PACKAGES = ("python", "fewbit", "numpy", "torch", "transformers")


def identity_of(
    files: Iterable[Path], recipe: Mapping[str, Any], output: Mapping[str, Any], data: Mapping[str, Any]
) -> dict[str, dict[str, Any]]:
    """Return by subject what decides over the bytes of a run; the files of the model are read whole."""
    versions = {name: version for name, version in installed_versions().items() if name in _PACKAGES}
    return {
        "model": {file.name: sha256_of(file) for file in files},
        "recipe": dict(recipe),
        "output": dict(output),
        "calibration": dict(data),
        "versions": {**versions, "numba": _numba(), "machine": this_machine().split(",")[0]},
    }


def require_same(before: Mapping[str, Any], now: Mapping[str, Any], where: Path) -> None:
    """Raise `CheckpointError` with everything in which two identities differ."""
    found = []
    for subject in dict.fromkeys((*before, *now)):
        old, new = before.get(subject, {}), now.get(subject, {})
        for key in dict.fromkeys((*old, *new)):
            if old.get(key) != new.get(key):
                found.append(f"{subject}, {key}: {_short(old.get(key))} then, {_short(new.get(key))} now")
    if found:
        more = f"; and {len(found) - 4} more" if len(found) > 4 else ""
        raise CheckpointError(
            f"{where} holds the journal of another run ({'; '.join(found[:4])}{more}); resume as it was begun, or "
            "begin anew with --overwrite"
        )


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _short(value: Any) -> str:
    if value is None:
        return "none"
    text = str(value)
    return f"{text[:12]}..." if len(text) == 64 and set(text) <= set("0123456789abcdef") else f"{text:.160}"


def _numba() -> str | None:
    from importlib import metadata

    try:
        return metadata.version("numba")
    except metadata.PackageNotFoundError:
        return None
