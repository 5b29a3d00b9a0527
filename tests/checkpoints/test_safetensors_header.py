"""Headers of safetensors files: a damaged or lying one is an error that says where it lies, not a number."""

import json
import re
import struct
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from fewbit.checkpoints.safetensors_file import read_tensors, stored_tensors
from fewbit.checkpoints.safetensors_header import LARGEST_HEADER, header_length, read_header
from fewbit.errors import CheckpointError


def raw_file(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8), **others):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets), **others}


def read_all(path):
    stored_tensors(path)
    return dict(read_tensors(path))


def refused(path, message):
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        read_all(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


def test_the_raw_file_of_these_tests_is_readable_when_it_tells_the_truth(tmp_path):
    path = raw_file(tmp_path / "a.safetensors", {"a": entry()}, struct.pack("<2f", 1.0, 2.0))
    assert read_all(path)["a"].tolist() == [1.0, 2.0]


def test_the_header_says_what_the_library_wrote(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"b": np.zeros((2, 3), np.float16), "a": np.ones(4, np.int64)}, path, metadata={"format": "pt"})
    header = read_header(path)
    assert {(e.tensor.name, e.tensor.dtype, e.tensor.shape, e.end - e.begin) for e in header.entries} == {
        ("b", "float16", (2, 3), 12),
        ("a", "int64", (4,), 32),
    }
    assert path.stat().st_size == header.data_start + 44


@pytest.mark.parametrize(
    "header",
    [
        {"a": entry(note="a key that a later version may have")},
        {"__metadata__": {"format": "pt"}, "a": entry()},
        {"empty": entry(shape=(0, 7), offsets=(0, 0)), "a": entry()},
        {"a": entry(), "scalar": entry(shape=(), offsets=(8, 12))},
        {"second": entry(offsets=(8, 16)), "first": entry()},
    ],
)
def test_what_the_format_allows_is_read(tmp_path, header):
    size = max(e["data_offsets"][1] for name, e in header.items() if name != "__metadata__")
    assert read_all(raw_file(tmp_path / "a.safetensors", header, bytes(size))).keys() == header.keys() - {
        "__metadata__"
    }


@pytest.mark.parametrize("kept", [0, 5, 7])
def test_a_file_shorter_than_the_length_of_its_header_says_so(tmp_path, kept):
    path = tmp_path / "a.safetensors"
    path.write_bytes(bytes(kept))
    refused(path, f"it has {kept} bytes, fewer than the 8 that give the length of its header")


@pytest.mark.parametrize("kept", [8, 40])
def test_a_file_truncated_in_its_header_says_what_is_claimed_and_what_is_there(tmp_path, kept):
    path = raw_file(tmp_path / "a.safetensors", {"a": entry()}, bytes(8))
    (claimed,) = struct.unpack("<Q", path.read_bytes()[:8])
    path.write_bytes(path.read_bytes()[:kept])
    refused(path, f"its header claims {claimed} bytes and {kept - 8} follow; is the download complete?")


def test_a_file_truncated_in_its_data_says_what_is_claimed_and_what_is_there(tmp_path):
    path = raw_file(tmp_path / "a.safetensors", {"a": entry()}, bytes(7))
    refused(path, "its tensors take 8 bytes and 7 are there; is the download complete?")


@pytest.mark.parametrize("length", [2**31, 2**40, 2**63 - 1, 2**63, 2**64 - 1])
def test_a_length_that_no_memory_holds_is_refused_without_trying(tmp_path, length):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", length) + b"{}")
    tracemalloc.start()
    refused(path, f"its header claims {length} bytes and 2 follow")
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_header_longer_than_the_library_reads_is_refused_though_the_file_is_as_long():
    with pytest.raises(CheckpointError, match=f"claims {LARGEST_HEADER + 1} bytes, more than the {LARGEST_HEADER}"):
        header_length(struct.pack("<Q", LARGEST_HEADER + 1), 8 + LARGEST_HEADER + 1)
    assert header_length(struct.pack("<Q", LARGEST_HEADER), 8 + LARGEST_HEADER) == LARGEST_HEADER


TWICE = b'{"a": %s, "a": %s}' % (json.dumps(entry()).encode(), json.dumps(entry("I32")).encode())
LIES = {
    "more numbers than bytes": ({"a": entry(shape=(3,), offsets=(0, 12))}, 8, "take 12 bytes and 8 are there"),
    "shape against offsets": (
        {"a": entry(shape=(3,))}, 8, "of shape [3] and type F32 takes 12 bytes, its data_offsets give it 8"),
    "type against offsets": (
        {"a": entry(dtype="F64")}, 8, "of shape [2] and type F64 takes 16 bytes, its data_offsets give it 8"),
    "bytes that nothing owns": ({"a": entry()}, 12, "its tensors take 8 bytes and 12 are there"),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "tensor b begins at byte 4 and overlaps a"),
    "the same bytes twice": ({"a": entry(), "b": entry()}, 8, "begins at byte 0 and overlaps"),
    "gap": ({"a": entry(), "b": entry(offsets=(12, 20))}, 20, "tensor b begins at byte 12 and leaves a gap after a"),
    "gap ahead": ({"a": entry(offsets=(4, 12))}, 12, "begins at byte 4 and leaves a gap after the header"),
    "end before begin": ({"a": entry(offsets=(8, 0))}, 8, "data_offsets [8, 0], which are not a begin and an end"),
    "negative offset": ({"a": entry(offsets=(-8, 0))}, 8, "data_offsets [-8, 0]"),
    "one offset": ({"a": entry(offsets=(0,))}, 8, "data_offsets [0]"),
    "offset of 2^63": ({"a": entry(offsets=(0, 2**63))}, 8, f"data_offsets [0, {2**63}]"),
    "negative size": ({"a": entry(shape=(-2,))}, 8, "shape [-2], which is not a list of sizes"),
    "size with a point": ({"a": entry(shape=(2.0,))}, 8, "shape [2.0], which is not a list of sizes"),
    "size that is true": ({"a": entry(shape=(True, 2))}, 8, "shape [True, 2], which is not a list of sizes"),
    "size that is text": ({"a": entry(shape=("2",))}, 8, "shape ['2'], which is not a list of sizes"),
    "shape that is a number": ({"a": entry() | {"shape": 2}}, 8, "shape 2, which is not a list of sizes"),
    "product that overflows": ({"a": entry(shape=(2**40, 2**40))}, 8, "more numbers than any file holds"),
    "size that overflows": ({"a": entry(shape=(2**62, 4, 2))}, 8, "which is not a list of sizes"),
    "an empty tensor that overflows": (
        {"a": entry(shape=(0, 2**40, 2**40), offsets=(0, 0))}, 0, "more numbers than any file holds"),
    "more axes than an array has": ({"a": entry(shape=(1,) * 99 + (2,))}, 8, "which is not a list of sizes"),
    "unknown type": ({"a": entry(dtype="F33")}, 8, "tensor a has type 'F33'; the types that fewbit reads are F64,"),
    "type that fewbit does not have": ({"a": entry(dtype="C64", shape=(1,))}, 8, "tensor a has type 'C64'"),
    "type that is a number": ({"a": entry(dtype=7)}, 8, "tensor a has type 7"),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8, "tensor a has no dtype, shape and data_offsets"),
    "an entry that is a list": ({"a": [1]}, 8, "tensor a has no dtype, shape and data_offsets"),
    "an entry that is null": ({"a": None}, 8, "tensor a has no dtype, shape and data_offsets"),
    "metadata of numbers": ({"__metadata__": {"a": 1}}, 0, "its __metadata__ is not an object of texts"),
    "metadata that is text": ({"__metadata__": "a"}, 0, "its __metadata__ is not an object of texts"),
    "no object": ([1, 2], 8, "its header does not hold a JSON object but a list"),
    "no JSON": (b'{"a": ', 8, "its header is not valid JSON"),
    "no UTF-8": (b'{"\xff": 1}', 8, "its header is not valid JSON: 'utf-8' codec"),
    "a name twice": (TWICE, 8, "its header names 'a' twice; which of them counts is not said"),
    "nested without end": (b'{"a": ' + b"[" * 200_000, 8, "nests deeper than 64"),
    "a name that leaves": ({"../../a": entry()}, 8, "'../../a' reads as a path out of its folder"),
    "an absolute name": ({"/etc/a": entry()}, 8, "'/etc/a' reads as a path out of its folder"),
    "an empty name": ({"": entry()}, 8, "a tensor has an empty name"),
    "a name with a control character": ({"a\x1b[2J": entry()}, 8, "holds characters that do not print"),
    "half a surrogate pair": (b'{"\\ud800": 1}', 8, "holds characters that do not print"),
    "a number that only the library refuses": (
        b'{"a": {"dtype": "F32", "shape": [-0], "data_offsets": [0, 0]}}', 0, "invalid type"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_an_error_that_says_how(tmp_path, lie):
    header, size, message = LIES[lie]
    path = raw_file(tmp_path / "a.safetensors", header, bytes(size))
    text = refused(path, message)
    assert text.startswith(f"{path} is not a readable safetensors file: ")
    assert text.isprintable()
    assert len(text) < 400 + len(str(path))


def test_a_bool_that_is_neither_true_nor_false_is_an_error(tmp_path):
    path = raw_file(tmp_path / "a.safetensors", {"a": entry("BOOL", (3,), (0, 3))}, b"\0\1\2")
    refused(path, "tensor a is of type BOOL and holds the byte 2")


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    refused(tmp_path / "nothing.safetensors", "cannot be read: No such file or directory")


def test_a_folder_of_that_name_is_an_error(tmp_path):
    (tmp_path / "a.safetensors").mkdir()
    refused(tmp_path / "a.safetensors", "cannot be read: Is a directory")
