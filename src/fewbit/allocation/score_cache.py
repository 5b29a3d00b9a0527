"""Scores that were computed before: a JSON file, by digests of what they depend on.

The key of a score holds the numbers of the whole model, the data, the layer, the scheme, the metric and the algorithm.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.errors import CheckpointError
from fewbit.interfaces import Frontend
from fewbit.numerics.namespace import to_numpy
from fewbit.toml_table import LARGEST
from fewbit.whole_file import write_whole

#: Raised when a metric computes something else under the same name.
_VERSION = 1


@dataclass(slots=True)
class ScoreCache:
    """Scores by key; without a path they are forgotten."""

    path: Path | None = None
    known: dict[str, float] = field(default_factory=dict)

    @classmethod
    def opened(cls, path: str | Path | None) -> ScoreCache:
        """Return the scores in a file, or in `scores.json` of a folder; none yet is no error.

        Raises:
            CheckpointError: a file that holds something else.

        """
        if path is None:
            return cls()
        file = Path(path)
        file = file if file.suffix == ".json" else file / "scores.json"
        if not file.exists():
            return cls(file)
        try:
            with file.open("rb") as opened:
                text = opened.read(64 * LARGEST + 1)
            if len(text) > 64 * LARGEST:
                raise CheckpointError(f"{file} is larger than scores of layers are; give another --cache")
            known = json.loads(text)
            sound = isinstance(known, dict) and all(_is_score(own) for own in known.values())
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"cannot read the scores in {file}: {error}; remove it, or give another") from error
        if not sound:
            raise CheckpointError(f"{file} holds no scores of layers; remove it, or give another --cache")
        return cls(file, {key: float(own) for key, own in known.items()})

    def get(self, key: str) -> float | None:
        """Return a score that is known."""
        return self.known.get(key)

    def put(self, key: str, score: float) -> None:
        """Remember a score; `save` writes it."""
        self.known[key] = score

    def save(self) -> None:
        """Write what is known, whole or not at all."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self.path, json.dumps(self.known, indent=0, sort_keys=True).encode())
        except OSError as error:
            raise CheckpointError(f"cannot write the scores to {self.path}: {error.strerror}") from error


def digest(*parts: Any) -> str:
    """Return a digest of arrays and texts."""
    made = hashlib.blake2b(digest_size=16)
    made.update(f"fewbit scores {_VERSION}".encode())
    for part in parts:
        if isinstance(part, str):
            made.update(f"\0{len(part)}:{part}".encode())
            continue
        array = np.ascontiguousarray(to_numpy(part))
        made.update(f"\0{array.dtype}{array.shape}".encode())
        made.update(array.reshape(-1).view(np.uint8).data)
    return made.hexdigest()


def digest_of_model(frontend: Frontend, model: Any) -> str:
    """Return a digest of every number of a float model, with their names."""
    parts: list[Any] = []
    for name, array in frontend.tensors(model, "float32"):
        parts += [name, digest(array)]
    return digest(*parts)


def digest_of_batches(batches: Iterable[Any]) -> str:
    """Return a digest of data."""
    return digest(*(digest(*_flat(batch)) for batch in batches))


def _flat(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return [part for key in sorted(value) for part in (str(key), *_flat(value[key]))]
    if isinstance(value, (list, tuple)):
        return [part for own in value for part in _flat(own)]
    return [value] if hasattr(value, "shape") else [repr(value)]


def _is_score(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
