"""Headers of GGUF files: every file that the gguf package writes is read as it reads it; damage and lies are errors."""

import io
import re
import struct
import time
import tracemalloc

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from gguf import GGUFValueType as Type

from fewbit.checkpoints import gguf_header
from fewbit.checkpoints.gguf_header import GgufTensor, parse_gguf_header, read_gguf_header
from fewbit.errors import CheckpointError

# What is genuine is read.


def written(path, tensors=(), keys=(), *, alignment=None, endian=gguf.GGUFEndian.LITTLE):
    """Write a file with the gguf package; keys are (name, value, type, type of elements)."""
    writer = gguf.GGUFWriter(path, "llama", endianess=endian)
    if alignment:
        writer.add_custom_alignment(alignment)
    for key, value, kind, inner in keys:
        writer.add_key_value(key, value, kind, inner)
    for name, array, kind in tensors:
        writer.add_tensor(name, array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def blocks(kind, rows=3, per_row=2, seed=0):
    _, size = gguf.GGML_QUANT_SIZES[kind]
    return np.random.default_rng(seed).integers(0, 256, (rows, per_row * size), dtype=np.uint8)


def as_the_library_reads_it(path):
    reader = gguf.GGUFReader(path)
    return {
        t.name: (tuple(reversed([int(n) for n in t.shape])), t.tensor_type.name, t.data_offset, t.n_bytes)
        for t in reader.tensors
    }


def as_fewbit_reads_it(path):
    header = read_gguf_header(path)
    return {t.name: (t.shape, t.kind, header.data_start + t.offset, t.nbytes) for t in header.tensors}


@pytest.mark.parametrize("kind", list(gguf.GGML_QUANT_SIZES), ids=lambda kind: kind.name)
def test_tensors_of_every_type_lie_where_the_library_finds_them(tmp_path, kind):
    plain = {Kind.F32: np.float32, Kind.F16: np.float16, Kind.F64: np.float64, Kind.I8: np.int8, Kind.I16: np.int16,
             Kind.I32: np.int32, Kind.I64: np.int64}  # fmt: skip
    array = np.ones((3, 5), plain[kind]) if kind in plain else blocks(kind)
    raw = None if kind in plain else kind
    path = written(tmp_path / "m.gguf", [("a", array, raw), ("b", np.ones(7, np.float32), None), ("c", array, raw)])
    found = as_fewbit_reads_it(path)
    assert found == as_the_library_reads_it(path)
    assert found["a"][1] == kind.name


@pytest.mark.parametrize("alignment", [None, 8, 16, 64, 4096])
@pytest.mark.parametrize("shape", [(1,), (5,), (3, 4), (2, 3, 4), (2, 3, 4, 5)])
def test_every_alignment_and_number_of_axes_is_read(tmp_path, alignment, shape):
    tensors = [(name, np.ones(shape, np.float32), None) for name in ("a", "b", "c")]
    path = written(tmp_path / "m.gguf", tensors, alignment=alignment)
    assert as_fewbit_reads_it(path) == as_the_library_reads_it(path)


KEYS = [
    ("n.u8", 255, Type.UINT8, None), ("n.i8", -128, Type.INT8, None), ("n.u16", 65535, Type.UINT16, None),
    ("n.i16", -5, Type.INT16, None), ("n.u32", 2**32 - 1, Type.UINT32, None), ("n.i32", -7, Type.INT32, None),
    ("n.f32", 0.5, Type.FLOAT32, None), ("n.u64", 2**63, Type.UINT64, None), ("n.i64", -(2**62), Type.INT64, None),
    ("n.f64", 0.1, Type.FLOAT64, None), ("yes", True, Type.BOOL, None), ("no", False, Type.BOOL, None),
    ("text", "ä€😀", Type.STRING, None), ("empty", "", Type.STRING, None),
    ("tokens", ["a", "", "ü"], Type.ARRAY, Type.STRING), ("scores", [0.5, 1.0], Type.ARRAY, Type.FLOAT32),
    ("flags", [True, False], Type.ARRAY, Type.BOOL), ("long", list(range(1000)), Type.ARRAY, Type.UINT64),
]  # fmt: skip


def test_values_of_every_type_come_back_and_arrays_as_their_length(tmp_path):
    header = read_gguf_header(written(tmp_path / "m.gguf", keys=KEYS))
    values = dict(header.values)
    assert values.pop("general.architecture") == "llama"
    assert values == {key: len(value) if kind == Type.ARRAY else value for key, value, kind, _ in KEYS}
    assert header.version == 3


def test_what_comes_behind_the_last_tensor_is_no_fault(tmp_path):
    path = written(tmp_path / "m.gguf", [("a", np.ones(7, np.float32), None)])
    before = as_fewbit_reads_it(path)
    path.write_bytes(path.read_bytes() + b"more")
    assert as_fewbit_reads_it(path) == before


@pytest.mark.slow
def test_a_real_file_of_100_mb_is_checked_in_a_second_and_little_memory():
    from fewbit.sources.demo import smollm2

    source = smollm2()
    path = source.folder / source.gguf
    assert path.stat().st_size > 90e6
    started = time.process_time()
    header = read_gguf_header(path)
    assert time.process_time() - started < 2  # 0.16 on one core of a laptop
    tracemalloc.start()
    read_gguf_header(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 << 20
    assert len(header.tensors) == 272


# Damage and lies, on a file made by hand so that each part can be wrong on its own.


def text(value):
    raw = value if isinstance(value, bytes) else value.encode()
    return struct.pack("<Q", len(raw)) + raw


def key(name, kind, value):
    return text(name) + struct.pack("<I", kind) + value


def info(name="a", shape=(4,), kind=0, offset=0, axes=None):
    packed = struct.pack(f"<I{len(shape)}Q", len(shape) if axes is None else axes, *shape)
    return text(name) + packed + struct.pack("<IQ", kind, offset)


ONE = info()


def file_of(*, keys=(), infos=(ONE,), data=32, counts=None, magic=b"GGUF", version=3):
    tensors, values = counts or (len(infos), len(keys))
    head = magic + struct.pack("<IQQ", version, tensors, values) + b"".join((*keys, *infos))
    return head + bytes(-len(head) % 32 + data)


ARCHITECTURE = key("general.architecture", 8, text("llama"))
BIG = gguf_header.MOST_ELEMENTS


def parse(content):
    return parse_gguf_header(io.BytesIO(content), len(content))


def test_the_file_of_these_tests_is_readable_when_it_tells_the_truth():
    header = parse(file_of(keys=[ARCHITECTURE]))
    assert header.tensors == (GgufTensor("a", (4,), "F32", 0, 16),)
    assert header.values == {"general.architecture": "llama"}


LIES = {
    "nothing": (b"", "is not a GGUF file"),
    "another magic number": (file_of(magic=b"GGML"), "is not a GGUF file; a model is a Hugging Face folder"),
    "version 1": (file_of(version=1), "is GGUF of version 1; versions 2 and 3 are read"),
    "version 4": (file_of(version=4), "is GGUF of version 4"),
    "big endian": (file_of(version=3 << 24), "is GGUF in big-endian byte order; convert it with gguf-convert-endian"),
    "no counts": (b"GGUF\3\0\0\0", "claims 16 bytes for the counts of tensors and keys and 0 are left"),
    "2^63 tensors": (file_of(counts=(2**63, 0)), f"claims {2**63} tensors, which take"),
    "2^64 - 1 keys": (file_of(counts=(0, 2**64 - 1)), f"claims {2**64 - 1} keys, which take"),
    "one tensor too many": (file_of(counts=(2, 0), data=0), "claims 2 tensors, which take 66 bytes at least"),
    "more keys than there are": (file_of(counts=(1, 9), data=0), "claims 9 keys, which take 126 bytes at least, and"),
    "more tensors than are read": (
        file_of(counts=(gguf_header.MOST_TENSORS + 1, 0), data=33 << 18), "claims 262145 tensors; more than 262144"),
    "a key of 2^62 bytes": (file_of(keys=[struct.pack("<Q", 2**62)]), f"claims {2**62} bytes for key 1 of 1"),
    "a key longer than the format has": (
        file_of(keys=[key("k" * 65536, 0, b"\0")]), "claims 65536 bytes for key 1 of 1; more than 65535"),
    "an empty key": (file_of(keys=[key("", 0, b"\0")]), "has the key '', which is empty or does not print"),
    "a key with NUL": (file_of(keys=[key("a\0", 0, b"\0")]), r"has the key 'a\x00'"),
    "a key that is not UTF-8": (file_of(keys=[key(b"\xff", 0, b"\0")]), "has key 1 of 1 that is not UTF-8"),
    "a key twice": (file_of(keys=[ARCHITECTURE] * 2), "has the key 'general.architecture' twice"),
    "a value of no type": (file_of(keys=[key("a", 13, b"\0")]), "has the key 'a' of type 13, which GGUF does not have"),
    "a bool of 2": (file_of(keys=[key("a", 7, b"\2")]), "has 2 as the value of 'a', which is a bool"),
    "a text of 2^63 bytes": (
        file_of(keys=[key("a", 8, struct.pack("<Q", 2**63))]), f"claims {2**63} bytes for the text of 'a'"),
    "a text that is not UTF-8": (file_of(keys=[key("a", 8, text(b"\xff"))]), "has the text of 'a' that is not UTF-8"),
    "an array of 2^62 numbers": (
        file_of(keys=[key("a", 9, struct.pack("<IQ", 10, 2**62))]), f"claims {2**62} elements of the array 'a'"),
    "an array of 2^62 texts": (
        file_of(keys=[key("a", 9, struct.pack("<IQ", 8, 2**62))]), f"claims {2**62} elements of the array 'a'"),
    "an array of more than is read": (
        file_of(keys=[key("a", 9, struct.pack("<IQ", 0, BIG + 1) + bytes(BIG + 1))]),
        f"claims {BIG + 1} elements of the array 'a'; more than {BIG} are not read"),
    "arrays of more than is read together": (
        file_of(keys=[key(name, 9, struct.pack("<IQ", 0, BIG // 2 + 1) + bytes(BIG // 2 + 1)) for name in "ab"]),
        f"claims {BIG // 2 + 1} elements of the array 'b'; more than {BIG // 2 - 1} are not read"),
    "arrays in arrays": (
        file_of(keys=[key("a", 9, struct.pack("<IQ", 9, 1) * 5000)]), "has an array 'a' of arrays, which is not read"),
    "an array of no type": (
        file_of(keys=[key("a", 9, struct.pack("<IQ", 99, 1))]), "has an array 'a' of type 99, which is not read"),
    "an array with a bool of 3": (
        file_of(keys=[key("a", 9, struct.pack("<IQ", 7, 2) + b"\1\3")]), "has 3 in the array 'a', which is of bools"),
    "a text in an array that is not UTF-8": (
        file_of(keys=[key("a", 9, struct.pack("<IQ", 8, 2) + text("x") + text(b"\xff"))]),
        "has element 1 of 'a' that is not UTF-8"),
    "alignment 0": (file_of(keys=[key("general.alignment", 4, struct.pack("<I", 0))]), "has general.alignment 0;"),
    "alignment 48": (file_of(keys=[key("general.alignment", 4, struct.pack("<I", 48))]), "has general.alignment 48;"),
    "alignment 2^31": (
        file_of(keys=[key("general.alignment", 4, struct.pack("<I", 2**31))]), f"has general.alignment {2**31};"),
    "alignment that is text": (
        file_of(keys=[key("general.alignment", 8, text("32"))]), "has general.alignment '32';"),
    "alignment that is an array": (
        file_of(keys=[key("general.alignment", 9, struct.pack("<IQ", 0, 32) + bytes(32))]),
        "has general.alignment array of 32;"),
    "alignment that is a bool": (file_of(keys=[key("general.alignment", 7, b"\1")]), "has general.alignment True;"),
    "a name twice": (file_of(infos=[info(), info(offset=32)], data=64), "names tensor a twice"),
    "a name that leaves": (file_of(infos=[info("../a")]), "tensor name '../a' reads as a path out of its folder"),
    "an absolute name": (file_of(infos=[info("/etc/a")]), "tensor name '/etc/a' reads as a path"),
    "an empty name": (file_of(infos=[info("")]), "a tensor has an empty name"),
    "a name with a control character": (file_of(infos=[info("a\x1b[2J")]), "holds characters that do not print"),
    "a name that is not UTF-8": (file_of(infos=[info(b"\xff")]), "has the name of tensor 1 that is not UTF-8"),
    "no axes": (file_of(infos=[info(shape=())]), "gives tensor a 0 axes; GGUF has 1 to 4"),
    "five axes": (file_of(infos=[info(shape=(1,) * 5)]), "gives tensor a 5 axes; GGUF has 1 to 4"),
    "2^32 - 1 axes": (file_of(infos=[info(axes=2**32 - 1)]), f"gives tensor a {2**32 - 1} axes"),
    "a product that wraps to 0": (
        file_of(infos=[info(shape=(2**32, 2**32))]), "the shape [4294967296, 4294967296], more numbers than any file"),
    "a size of 2^64 - 1": (file_of(infos=[info(shape=(2**64 - 1,))]), "more numbers than any file holds"),
    "a type that was removed": (file_of(infos=[info(kind=4)]), "has tensor a of type 4, which the installed gguf"),
    "a type of 2^32 - 1": (file_of(infos=[info(kind=2**32 - 1)]), f"has tensor a of type {2**32 - 1}"),
    "a row that is no multiple of the block": (
        file_of(infos=[info(shape=(48, 2), kind=2)], data=64),
        "gives tensor a rows of 48 numbers, which is not a multiple of the 32 of a block of Q4_0"),
    "an offset that is not aligned": (
        file_of(infos=[info(offset=8)], data=64), "puts tensor a at byte 8, which is not a multiple of 32"),
    "an offset behind the end": (
        file_of(infos=[info(offset=2**40)]), f"puts tensor a at bytes {2**40} to {2**40 + 16} of its data"),
    "an offset of 2^64 - 32": (file_of(infos=[info(offset=2**64 - 32)]), f"puts tensor a at bytes {2**64 - 32}"),
    "data cut short": (file_of(data=15), "puts tensor a at bytes 0 to 16 of its data, which have 15; is the download"),
    "no data": (file_of(data=0), "puts tensor a at bytes 0 to 16 of its data, which have 0"),
    "overlap": (
        file_of(infos=[info("a", (16,)), info("b", (4,), offset=32)], data=64),
        "puts tensor b at byte 32, over the bytes of a"),
    "the same bytes twice": (
        file_of(infos=[info("a"), info("b")]), "puts tensor b at byte 0, over the bytes of a"),
}  # fmt: skip


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_an_error_that_says_how(lie):
    content, message = LIES[lie]
    with pytest.raises(CheckpointError, match=re.escape(message)) as caught:
        parse(content)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("lie", ["2^63 tensors", "a text of 2^63 bytes", "an array of 2^62 texts", "2^32 - 1 axes"])
def test_what_no_memory_holds_is_refused_without_trying(lie):
    content, _ = LIES[lie]
    tracemalloc.start()
    with pytest.raises(CheckpointError):
        parse(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 20


def test_a_file_cut_anywhere_is_an_error(tmp_path):
    tensors = [("a", np.ones((3, 8), np.float32), None), ("b", blocks(Kind.Q4_0), Kind.Q4_0)]
    whole = written(tmp_path / "m.gguf", tensors, KEYS).read_bytes()
    last = max(end for *_, start, size in as_fewbit_reads_it(tmp_path / "m.gguf").values() for end in (start + size,))
    for kept in range(last):
        with pytest.raises(CheckpointError):
            parse(whole[:kept])
    parse(whole[:last])


def test_a_big_endian_file_of_the_library_is_refused_with_the_remedy(tmp_path):
    path = written(tmp_path / "m.gguf", [("a", np.ones(4, np.float32), None)], endian=gguf.GGUFEndian.BIG)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(path))} is GGUF in big-endian byte order; convert it"):
        read_gguf_header(path)


def test_a_file_that_is_shorter_than_it_was_when_it_was_measured_is_an_error():
    content = file_of(keys=[ARCHITECTURE])
    with pytest.raises(CheckpointError, match="ended while the magic number was read"):
        parse_gguf_header(io.BytesIO(b""), len(content))


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"cannot read .*nothing\.gguf: No such file"):
        read_gguf_header(tmp_path / "nothing.gguf")
