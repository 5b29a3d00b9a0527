"""A byte-level BPE in tokenizer.json as metadata of GGUF: tokens, what each is, and merges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fewbit.checkpoints.gguf.pre_tokenizers import pre_tokenizer
from fewbit.errors import CheckpointError

#: What a token is.
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6


def byte_level_values(tokenizer: Mapping[str, Any], rows: int, pre: str | None) -> dict[str, Any]:
    """Return the metadata of a byte-level BPE for an embedding of `rows` rows.

    Raises:
        CheckpointError: another kind of tokenizer, or tokens beyond the embedding.

    """
    model = tokenizer.get("model") or {}
    # Files of before 2021 name no type.
    if model.get("type", "BPE") != "BPE" or "merges" not in model or not _bytes_are_spelled(tokenizer):
        raise CheckpointError(
            f"a tokenizer of type {model.get('type')!r:.40} without byte-level BPE or SentencePiece has no form here; "
            "write another layout"
        )
    tokens, types = token_table(tokenizer, rows)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre or pre_tokenizer(tokenizer),
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": [_merge(own) for own in model["merges"]],
    }


def token_table(tokenizer: Mapping[str, Any], rows: int) -> tuple[list[str], list[int]]:
    """Return the text and the kind of each token; a row without one is `[PAD7]`, which no text becomes."""
    tokens, types = [f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows
    for text, number in tokenizer["model"]["vocab"].items():
        _put(tokens, types, number, text, NORMAL)
    for own in tokenizer.get("added_tokens") or ():
        _put(tokens, types, own["id"], own["content"], CONTROL if own.get("special") else USER_DEFINED)
    return tokens, types


def _put(tokens: list[str], types: list[int], number: Any, text: Any, kind: int) -> None:
    if not isinstance(text, str) or not isinstance(number, int) or not 0 <= number < len(tokens):
        raise CheckpointError(
            f"token {text!r:.60} has the number {number!r:.40}, and the embedding has {len(tokens)} rows; "
            "tokenizer and weights do not belong together"
        )
    tokens[number], types[number] = text, kind


def _bytes_are_spelled(tokenizer: Mapping[str, Any]) -> bool:
    """Whether text is spelled in the 256 letters that stand for bytes."""
    step = tokenizer.get("pre_tokenizer") or {}
    return any(own.get("type") == "ByteLevel" for own in (step, *step.get("pretokenizers", ())))


def _merge(own: str | list[str]) -> str:
    """Return a merge as `a b`; a space inside of a part is spelled by the letter of its byte."""
    if isinstance(own, str):
        return own
    first, second = own
    return f"{first} {second}" if " " not in first + second else " ".join(p.replace(" ", "Ġ") for p in own)
