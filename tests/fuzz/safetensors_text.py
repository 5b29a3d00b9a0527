"""A safetensors file taken apart and put together, so that each word of its header can be made a lie.

u64 length | JSON {name: {dtype, shape, data_offsets}} | data. Shares no code with fewbit.
"""

from __future__ import annotations

import json
import struct
from typing import Any

from genuine_checkpoints import INDEX, Files


def opened(content: bytes) -> tuple[dict[str, Any], bytes]:
    """Return the header of a safetensors file and its data."""
    length = int.from_bytes(content[:8], "little")
    return json.loads(content[8 : 8 + length]), content[8 + length :]


def closed(header: dict[str, Any] | str, data: bytes) -> bytes:
    """Undo `opened`."""
    text = (header if isinstance(header, str) else json.dumps(header)).encode("utf-8", errors="surrogatepass")
    return struct.pack("<Q", len(text)) + text + data


def tensors_in(content: bytes) -> dict[str, list[Any]]:
    """Return type, shape and bytes of each tensor."""
    header, data = opened(content)
    entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
    return {name: [own["dtype"], own["shape"], data[slice(*own["data_offsets"])]] for name, own in entries.items()}


def repacked(tensors: dict[str, list[Any]]) -> bytes:
    """Undo `tensors_in`, without the metadata."""
    header, data = {}, b""
    for name, (kind, shape, content) in tensors.items():
        header[name] = {"dtype": kind, "shape": shape, "data_offsets": [len(data), len(data) + len(content)]}
        data += content
    return closed(header, data)


def indexed(files: Files) -> Files:
    """Return the folder with an index that fits its weight files."""
    weights = {name: content for name, content in files.items() if name.endswith(".safetensors")}
    placed = {own: name for name, content in weights.items() for own in tensors_in(content)}
    return {**files, INDEX: json.dumps({"metadata": {}, "weight_map": placed}).encode()}
