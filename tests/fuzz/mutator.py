"""What a fuzzer does to an input of a reader: one of its files is changed by what knows its form, or blindly."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import message_mutations
import text_mutations
from framed import framed, unframed
from mutations import BLIND, MUTATIONS
from readers import READERS

CORPUS = Path(__file__).with_name("corpus")
_JSON = [own for own in MUTATIONS["safetensors"] if own not in BLIND]
_GGUF = [own for own in MUTATIONS["gguf"] if own not in BLIND]
#: Mutations that know a form, by the ending of the file.
FORMS = {
    "json": _JSON, "safetensors": _JSON, "gguf": _GGUF, "imatrix": _GGUF[:2], "onnx": [message_mutations.changed],
    "model": [message_mutations.changed], "toml": [text_mutations.changed], "csv": [text_mutations.changed],
    "npy": [text_mutations.headed],
}  # fmt: skip


def seeds_of(reader: str) -> dict[str, bytes]:
    """Return the inputs that are kept for a reader, by their names: seeds, and what once crashed it."""
    return {file.name: file.read_bytes() for file in sorted((CORPUS / reader).iterdir())}


class Mutator:
    """Mutates one of the files of an input."""

    def __init__(self, name: str, blindly: Callable[[bytes, int], bytes] | None = None) -> None:
        """Mutate inputs of the reader called `name`; what knows no form is `blindly`, else one of `BLIND`."""
        self._reader = READERS[name]
        self._seeds = list(seeds_of(name).values())
        self._blindly = blindly

    def __call__(self, data: bytes, most: int, seed: int) -> bytes:
        """Return what became of `data`, at most `most` bytes."""
        rng = random.Random(seed)
        # What libFuzzer keeps for the lines that it reached is refused early, most of it.
        data = rng.choice(self._seeds) if rng.random() < 0.4 else bytes(data)
        files = unframed(data, self._reader.file)
        name = rng.choice(list(files))
        if self._blindly and rng.random() < 0.3:
            files[name] = bytes(self._blindly(files[name] or b"\0", max(most - len(data) + len(files[name]), 1)))
        else:
            files[name] = self._by_form(rng, name, files[name])
        one = len(files) == 1 and self._reader.file in files
        whole = files[name] if one else framed(files)
        return whole if len(whole) <= most else data

    def _by_form(self, rng: random.Random, name: str, content: bytes) -> bytes:
        other = unframed(rng.choice(self._seeds), self._reader.file).get(name, content)
        known = FORMS.get(name.rpartition(".")[2], [])
        mutation = rng.choice(known if known and rng.random() < 0.8 else BLIND)
        try:
            if not name.endswith(".json"):
                return mutation(rng, content or b"\0", other or b"\0")
            # What knows JSON expects the length of it in front, as in a header.
            pair = [len(own).to_bytes(8, "little") + own for own in (content, other)]
            return mutation(rng, *pair)[8:]
        # Nothing that the mutation speaks of is left.
        except (ValueError, TypeError, AttributeError, IndexError, KeyError, RecursionError):
            return BLIND[0](rng, content or b"\0", b"")
