"""A SentencePiece BPE as metadata of GGUF: pieces with scores, from tokenizer.model or a tokenizer.json made of it.

llama.cpp merges the neighbours whose union has the highest score; a tokenizer.json lists merges in the order of that
score, so that the place of the first merge that makes a piece stands for it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from fewbit.checkpoints.gguf.byte_level import BYTE, CONTROL, UNKNOWN, UNUSED, USER_DEFINED, token_table
from fewbit.checkpoints.gguf.sentencepiece_model import PieceModel, parse_model

#: Scores of rows without a piece, and of tokens that were added to the pieces.
_NONE, _ADDED = -10000.0, -1000.0
_SPACE = "\u2581"  # what a space is spelled with


def sentencepiece_values(
    model: bytes | None, tokenizer: Mapping[str, Any], settings: Mapping[str, Any], rows: int
) -> dict[str, Any]:
    """Return the metadata for an embedding of `rows` rows.

    Raises:
        CheckpointError: a file that is no such model, or one that is no BPE.

    """
    if model is not None:
        parsed = parse_model(model)
        tokens, types, scores = _from_model(parsed, rows)
        prefix, squeezes = parsed.adds_prefix, parsed.removes_spaces
    else:
        tokens, types = token_table(tokenizer, rows)
        scores = _ranked(tokenizer, tokens, types)
        prefix, squeezes = _adds_prefix(tokenizer), False
    for number, text, special in _added(tokenizer, settings):
        if 0 <= number < rows and types[number] not in (BYTE, UNKNOWN):
            tokens[number] = text if special else text.replace(_SPACE, " ")
            types[number] = CONTROL if special else USER_DEFINED
            scores[number] = _ADDED
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.pre": "default",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.add_space_prefix": prefix,
        "tokenizer.ggml.remove_extra_whitespaces": squeezes,
    }


def _from_model(parsed: PieceModel, rows: int) -> tuple[list[str], list[int], list[float]]:
    tokens, types, scores = [f"[PAD{number}]" for number in range(rows)], [UNUSED] * rows, [_NONE] * rows
    for number, piece in enumerate(parsed.pieces[:rows]):
        tokens[number], scores[number], types[number] = piece.text, piece.score, piece.kind
    return tokens, types, scores


def _ranked(tokenizer: Mapping[str, Any], tokens: list[str], types: list[int]) -> list[float]:
    """Set the types of bytes and of what is unknown, and return a score for each token."""
    merges = tokenizer["model"]["merges"]
    ranks: dict[str, int] = {}
    for place, own in enumerate(merges):
        ranks.setdefault("".join(own.split(" ", 1) if isinstance(own, str) else own), place)
    for number, text in enumerate(tokens):
        if text == tokenizer["model"].get("unk_token"):
            types[number] = UNKNOWN
        elif len(text) == 6 and text.startswith("<0x") and text.endswith(">"):
            types[number] = BYTE
    plain = (UNKNOWN, BYTE, CONTROL)
    ranked = zip(tokens, types, strict=True)
    return [0.0 if kind in plain else -float(ranks.get(text, len(merges))) for text, kind in ranked]


def _adds_prefix(tokenizer: Mapping[str, Any]) -> bool:
    """Whether a space is put before a text: a `Prepend` of the normalizer, or a `Metaspace` that does so."""
    normalizer, splitter = tokenizer.get("normalizer") or {}, tokenizer.get("pre_tokenizer") or {}
    steps = [normalizer, *normalizer.get("normalizers", ()), splitter, *splitter.get("pretokenizers", ())]
    return any(
        own.get("type") == "Prepend"
        or (own.get("type") == "Metaspace" and own.get("prepend_scheme", "always") != "never")
        for own in steps
    )


def _added(tokenizer: Mapping[str, Any], settings: Mapping[str, Any]) -> Iterator[tuple[int, str, bool]]:
    """Yield number and text of each token that was added, and whether it is special."""
    for own in tokenizer.get("added_tokens") or ():
        yield int(own["id"]), str(own["content"]), bool(own.get("special"))
    for number, own in (settings.get("added_tokens_decoder") or {}).items():
        yield int(number), str(own["content"]), bool(own.get("special"))
