"""Text to evaluate on: a file, or by default `pydoc_data.topics`, English prose that every CPython carries."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fewbit.errors import SourceError

if TYPE_CHECKING:
    from torch import Tensor


def read_text(path: str | Path | None) -> tuple[str, str]:
    """Return a text and what to call it; without a path the language reference inside Python's `pydoc`.

    Raises:
        SourceError: a file that cannot be read, is not UTF-8, or is empty.

    """
    if path is None:
        from pydoc_data.topics import topics

        text = "\n\n".join(topics[name] for name in sorted(topics))
        return text, f"pydoc_data.topics of Python {platform.python_version()}"
    try:
        text = Path(path).read_text(encoding="utf-8")
    except OSError as error:
        raise SourceError(f"cannot read text {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise SourceError(f"text {path} is not UTF-8: {error.reason} at byte {error.start}") from error
    if not text.strip():
        raise SourceError(f"text {path} is empty")
    return text, str(path)


def token_sequences(tokenizer: Any, text: str, *, sequences: int, length: int) -> list[Tensor]:
    """Return the first `sequences` pieces of `length` tokens of `text`, each (1, length).

    Raises:
        SourceError: a text shorter than one piece, or no tokenizer.

    """
    import torch

    if tokenizer is None:
        raise SourceError("the model has no tokenizer for a text; put its files into the folder, or measure on samples")
    # Tokenizing a whole book to use its first page would take seconds: take more of it only while that is too little.
    taken = sequences * length * 8
    ids = tokenizer(text[:taken], add_special_tokens=False)["input_ids"]
    while len(ids) <= sequences * length and taken < len(text):  # the last token may be cut: one more than needed
        taken *= 4
        ids = tokenizer(text[:taken], add_special_tokens=False)["input_ids"]
    pieces = [ids[start : start + length] for start in range(0, sequences * length, length)]
    whole = [torch.tensor([piece]) for piece in pieces if len(piece) == length]
    if not whole:
        raise SourceError(
            f"the text has {len(ids)} tokens, fewer than one sequence of {length}; give more text, or shorter sequences"
        )
    return whole
