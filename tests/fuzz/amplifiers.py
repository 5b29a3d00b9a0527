"""Files whose every byte stands for much memory: what a reader makes of them has to stay in proportion. A program.

    python tests/fuzz/amplifiers.py json-lists

Prints how the reader of such a file of about 12 MB ended under the limits of the fuzzer, and its bytes.
"""

from __future__ import annotations

import io
import itertools
import json
import string
import struct
import sys
import tempfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from executions import Executions
from framed import framed, unframed
from gguf_text import ARRAY, F32, KINDS, STRING, U32, GgufText, Value
from message_mutations import fields, message
from mutator import seeds_of

SIZE = 12 << 20
_LETTERS = string.ascii_letters + string.digits


def names(count: int, width: int = 4) -> list[str]:
    """Return as many different short names."""
    return ["".join(own) for own in itertools.islice(itertools.product(_LETTERS, repeat=width), count)]


def _object(**values: bytes) -> bytes:
    return b"{" + b",".join(b'"%s":%s' % (name.encode(), value) for name, value in values.items()) + b"}"


LISTS = b"[" + b"[]," * (SIZE // 3) + b"[]]"
OBJECTS = b"[" + b"{}," * (SIZE // 3) + b"{}]"


def _keys(size: int = SIZE) -> bytes:
    return b"{" + b",".join(b'"%s":0' % name.encode() for name in names(size // 9)) + b"}"


def _weights(header: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + data


def _entries() -> bytes:
    each = b'{"dtype":"U8","shape":[0],"data_offsets":[0,0]}'
    return _weights(b"{" + b",".join(b'"%s":%s' % (name.encode(), each) for name in names(SIZE // 55)) + b"}")


def _folder(file: str, content: bytes) -> bytes:
    return framed({file: content, "model.safetensors": _weights(b"{}")})


def _gguf(values: list[Value], count: int = 0) -> bytes:
    """Return a file of these values and of so many tensors without a number, an entry of 36 bytes each."""
    head = GgufText(values, []).written()[24:].rstrip(b"\0")
    entry = struct.pack("<IQIQ", 1, 0, KINDS["F32"], 0)
    entries = b"".join(b"\4" + bytes(7) + name.encode() + entry for name in names(count))
    return b"GGUF" + struct.pack("<IQQ", 3, count, len(values)) + head + entries + bytes(64)


def _gguf_keys() -> bytes:
    return _gguf([*_llama(1), *(Value(name, 0, raw=b"\1") for name in names(60_000))], 1)


def _llama(blocks: int) -> list[Value]:
    sizes = {"block_count": blocks, "context_length": 16, "embedding_length": 64, "feed_forward_length": 64}
    heads = {"attention.head_count": 2, "attention.head_count_kv": 1, "vocab_size": 12}
    values = [Value("general.architecture", STRING, "llama")]
    values += [Value(f"llama.{name}", U32, own) for name, own in {**sizes, **heads}.items()]
    return [*values, Value("llama.attention.layer_norm_rms_epsilon", F32, 1e-5)]


def _gguf_array(kind: int, count: int, element: bytes) -> bytes:
    raw = struct.pack("<IQ", kind, count) + element * count
    return _gguf([*_llama(1), Value("tokenizer.ggml.scores", ARRAY, raw=raw)], 1)


def _nodes() -> bytes:
    own = list(fields(unframed(seeds_of("onnx")["seed-0"], "m.onnx")["m.onnx"]))
    place = next(number for number, field in enumerate(own) if field[0] == 7)
    graph = own[place][2]
    assert isinstance(graph, bytes)
    own[place] = 7, 2, graph + b"\x0a\x03\x22\x01A" * (SIZE // 5)
    return message(own)


def _bomb(name: str) -> bytes:
    """An archive of zeros: of 240 MB in `name`, and a few in the other."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        for own in ("x", "labels"):
            array = io.BytesIO()
            np.save(array, np.zeros((32, 1 << 20 if own == name else 1), np.int64))
            archive.writestr(f"{own}.npy", array.getvalue())
    return file.getvalue()


def _pieces() -> bytes:
    return b"\x0a\x00" * (SIZE // 2) + b"\x12\x02\x18\x02"


def _tables(spelled: Callable[[str], str]) -> bytes:
    text = "".join(spelled(name) for name in names(400_000))
    return text.encode()[: 1 << 20].rpartition(b"\n")[0]


def _matrix() -> bytes:
    rows = names(SIZE // 20)
    return struct.pack("<i", len(rows)) + b"".join(struct.pack("<i4siif", 4, own.encode(), 1, 1, 1.0) for own in rows)


#: By name the reader and what makes the file.
AMPLIFIERS: dict[str, tuple[str, Callable[[], bytes]]] = {
    "json-lists": ("configuration", lambda: _folder("config.json", _object(a=LISTS))),
    "json-objects": ("configuration", lambda: _folder("config.json", _object(a=OBJECTS))),
    "json-keys": ("configuration", lambda: _folder("config.json", _keys())),
    "keys-below-the-bound": ("configuration", lambda: _folder("config.json", _keys(3 << 20))),
    "lists-below-the-bound": ("configuration", lambda: _folder("config.json", _object(a=LISTS[: 3 << 19] + b"[]]"))),
    "index-keys": ("index", lambda: _folder("model.safetensors.index.json", _object(weight_map=_keys()))),
    "tokenizer-keys": ("tokenizer-values", lambda: framed({"tokenizer.json": _object(model=_keys())})),
    "tokenizer-lists": ("tokenizer", lambda: framed({"tokenizer.json": LISTS, "tokenizer_config.json": b"{}"})),
    "adapter-lists": ("adapters", lambda: framed({"adapter_config.json": _object(a=LISTS)})),
    "safetensors-entries": ("safetensors", _entries),
    "safetensors-lists": ("safetensors", lambda: _weights(_object(a=LISTS))),
    "gguf-keys": ("gguf", _gguf_keys),
    "gguf-tensors": ("gguf", lambda: _gguf(_llama(200_000), 200_000)),
    "gguf-blocks": ("gguf", lambda: _gguf(_llama(4_000), 200_000)),
    "gguf-bytes": ("gguf", lambda: _gguf_array(0, 2_000_000, b"\1")),
    "gguf-texts": ("gguf", lambda: _gguf_array(8, 1_000_000, struct.pack("<Q", 2) + b"ab")),
    "onnx-nodes": ("onnx", lambda: framed({"m.onnx": _nodes()})),
    "npz-samples": ("npz", lambda: _bomb("x")),
    "npz-labels": ("npz", lambda: _bomb("labels")),
    "pieces": ("tokenizer-values", lambda: framed({"tokenizer.model": _pieces()})),
    "toml-tables": ("recipe", lambda: _tables(lambda name: f"[{name}]\n")),
    "toml-parts": ("recipe", lambda: _tables(lambda name: ".".join([name, *"abcdefghijklmnopqrstuvwxyz"]) + "=1\n")),
    "toml-lists": ("recipe", lambda: _tables(lambda name: f"{name}=[{'[],' * 200}]\n")),
    "matrix-entries": ("importance", _matrix),
}  # fmt: skip


def main() -> None:
    """Run from the command line."""
    for name in sys.argv[1:] or AMPLIFIERS:
        reader, made = AMPLIFIERS[name]
        content = made()
        run = Executions(reader, Path(tempfile.gettempdir()) / "fewbit-crashes" / name)
        run.prepare(list(seeds_of(reader).values()))
        ended = run.run(content)
        run.close()
        said = {"amplifier": name, "bytes": len(content), "ended": ended, "said": run.said[:300]}
        sys.stdout.write(f"\n{json.dumps(said)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
