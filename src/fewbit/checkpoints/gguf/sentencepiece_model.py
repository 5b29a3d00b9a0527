"""tokenizer.model of SentencePiece: pieces, scores and what is done to spaces, read from the bytes of its protobuf.

ModelProto { pieces = 1 { piece = 1, score = 2, type = 3 }, trainer_spec = 2 { model_type = 3 },
normalizer_spec = 3 { add_dummy_prefix = 3, remove_extra_whitespaces = 4 } }. Source: sentencepiece_model.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass

from fewbit.errors import CheckpointError
from fewbit.protobuf_wire import fields

_BPE = 2
#: Vocabularies have up to 262,144; a piece without text takes two bytes of the file and a hundred of memory.
MOST_PIECES = 1 << 19


@dataclass(frozen=True, slots=True)
class Piece:
    """A token."""

    text: str
    score: float
    #: 1 normal, 2 unknown, 3 control, 4 user defined, 5 unused, 6 a byte: as in GGUF.
    kind: int


@dataclass(frozen=True, slots=True)
class PieceModel:
    """A model of SentencePiece."""

    pieces: tuple[Piece, ...]
    #: Whether a space is put before a text, and runs of spaces become one.
    adds_prefix: bool
    removes_spaces: bool


def parse_model(content: bytes) -> PieceModel:
    """Return what a tokenizer.model holds.

    Raises:
        CheckpointError: no such file, or one that merges in another way than by scores of pairs.

    """
    pieces: list[Piece] = []
    kind, prefix, squeezes = 1, True, True  # what the fields are where they are left out
    try:
        for number, value in _fields(content):
            if len(pieces) > MOST_PIECES:
                raise CheckpointError(f"tokenizer.model holds more than {MOST_PIECES} pieces, which are not read")
            if number == 1 and isinstance(value, bytes):
                pieces.append(_piece(value))
            elif number == 2 and isinstance(value, bytes):
                kind = int(dict(_fields(value)).get(3, kind))
            elif number == 3 and isinstance(value, bytes):
                own = dict(_fields(value))
                prefix, squeezes = bool(own.get(3, True)), bool(own.get(4, True))
    except (ValueError, struct.error) as error:
        raise CheckpointError(f"tokenizer.model is no file of SentencePiece: {error}") from error
    if not pieces or kind != _BPE:
        said = "holds no pieces" if not pieces else f"is of model_type {kind}, not BPE (2)"
        raise CheckpointError(f"tokenizer.model {said}; GGUF files of this version hold BPE")
    return PieceModel(tuple(pieces), prefix, squeezes)


def _piece(content: bytes) -> Piece:
    own = dict(_fields(content))
    text, score, kind = own.get(1, b""), own.get(2, b"\0\0\0\0"), own.get(3, 1)
    if not isinstance(text, bytes) or not isinstance(score, bytes) or not isinstance(kind, int) or not 1 <= kind <= 6:
        raise ValueError(f"piece {text!r:.40} of type {kind!r:.40}")
    return Piece(text.decode("utf-8"), struct.unpack("<f", score)[0], kind)


def _fields(content: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a message: whole numbers, and bytes for the rest."""
    for field in fields(content):
        yield field.number, content[field.begin : field.end] if field.wire else field.whole
