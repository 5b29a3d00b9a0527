"""Several files as one: what a fuzzer mutates is one string of bytes, and a checkpoint is a folder.

`name length\n` and that many bytes, file by file; what follows no such line belongs to the last file.
"""

from __future__ import annotations

import re

Files = dict[str, bytes]
_LINE = re.compile(rb"([A-Za-z0-9_.\-]{1,80}) ([0-9]{1,8})\n")


def framed(files: Files) -> bytes:
    """Return the files as one.

    >>> framed({"a": b"1", "b": b""})
    b'a 1\\n1b 0\\n'
    """
    return b"".join(b"%s %d\n%s" % (name.encode(), len(content), content) for name, content in files.items())


def unframed(content: bytes, usual: str) -> Files:
    """Return the files in `content`; what is framed wrongly from the start is one file called `usual`.

    >>> unframed(b"a 1\\n1b 9\\nshort", "m")
    {'a': b'1', 'b': b'short'}
    """
    files: Files = {}
    place, name = 0, usual
    while place < len(content):
        line = _LINE.match(content, place)
        if line is None:
            files[name] = files.get(name, b"") + content[place:]
            break
        name, end = line[1].decode(), line.end() + int(line[2])
        files[name] = content[line.end() : end]
        place = end
    return files or {usual: b""}
