"""What befalls a text, TOML or the header of an `.npy` file: a word of it is another word, or is not there."""

from __future__ import annotations

import random
import re

from mutations import NUMBERS

_WORD = re.compile(rb"[A-Za-z0-9_.+\-]+|\"[^\"\n]*\"|'[^'\n]*'|[^\sA-Za-z0-9]")
#: Words of recipes and headers, and some that mean trouble.
WORDS = (
    b'"int8 static entropy"', b'"q4_k"', b'"e4m3 tile128x128"', b'"int4 g0"', b'"mxfp4"', b'"attention"',
    b'"embedding"',
    b'"(a+)+$"', b'"(.*.*)*x"', b"'(\\w+\\.?)+!'", b"'((a*)*)*b'", b"'(?=(.*)*x).*'", b'"["', b'"\\\\p{L}"', b"true",
    b"{}", b"[]", b"[[rules]]", b"[", b"]", b"=", b'"""', b"nan", b"inf", b"-1", b"1e400", b"0x", b"1979-05-27", b"a.b",
    b"keep", b"match", b"input", b"output", b"optional", b"algorithm", b"transforms", b"corrections", b"'O'",
    b"'<M8[s]'",
    b"'<c8'", b"'|V8'", b"'<f2'", b"'>u8'", b"(3,)", b"()", b"(0, 99999999999999)", b"-", b"[('a', '<f4')]", b"None",
    b"\xff", b"\0", b"\xe2\x80\xae",
)  # fmt: skip


def changed(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Put another word, of this text, of another, of `WORDS` or a number, in the place of one; or nothing."""
    found = list(_WORD.finditer(content, 0, 4000))
    place = rng.choice(found)
    same = [own[0] for own in (*found, *_WORD.finditer(other, 0, 4000))]
    new = rng.choice([rng.choice(WORDS), rng.choice(same), str(rng.choice(NUMBERS)).encode(), b""])
    return content[: place.start()] + new + content[place.end() :]


def headed(rng: random.Random, content: bytes, other: bytes) -> bytes:
    """Change a word of the header of an `.npy` file, and mend its length."""
    length = int.from_bytes(content[8:10], "little")
    header = changed(rng, content[10 : 10 + length], other[10:138]).rstrip() + b"\n"
    header = header.rjust(length) if rng.random() < 0.5 else header[:-1].ljust(length - 1) + b"\n"
    return content[:8] + len(header).to_bytes(4, "little")[:2] + header + content[10 + length :]
