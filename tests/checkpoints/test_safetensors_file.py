"""Safetensors files: what is written comes back to the bit, and a damaged or lying file is an error, not a number."""

import json
import re
import struct

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file

from fewbit.checkpoints.safetensors_file import (
    INDEX,
    ShardedWriter,
    files_of,
    numpy_type,
    read_tensors,
    stored_tensors,
)
from fewbit.errors import CheckpointError
from fewbit.interfaces import BYTES, StoredTensor


def stored(name, dtype="float32", shape=(4, 6)):
    return StoredTensor(name, dtype, shape)


def random_bits(tensor, seed=0):
    """An array of any type whose bits are random: NaN, infinity and subnormals included."""
    kind = numpy_type(tensor.dtype)
    raw = np.random.default_rng(seed).integers(0, 256, size=tensor.nbytes, dtype=np.uint8)
    raw = raw % 2 if tensor.dtype == "bool" else raw
    return raw.view(kind).reshape(tensor.shape)


def write(folder, tensors, **options):
    arrays = {tensor.name: random_bits(tensor, seed) for seed, tensor in enumerate(tensors)}
    writer = ShardedWriter(folder, tensors, **options)
    for name, array in arrays.items():
        writer.put(name, array)
    writer.close()
    return arrays


def read(folder):
    return {name: array for file in files_of(folder) for name, array in read_tensors(file)}


def same_bits(left, right):
    return left.dtype == right.dtype and left.shape == right.shape and left.tobytes() == right.tobytes()


def names(folder):
    return sorted(path.name for path in folder.iterdir())


# What is written comes back.


@pytest.mark.parametrize("dtype", BYTES)
def test_every_type_comes_back_to_the_bit(tmp_path, dtype):
    tensors = [stored("a", dtype, (3, 8)), stored("b", dtype, (5,))]
    arrays = write(tmp_path, tensors)
    assert [tensor for file in files_of(tmp_path) for tensor in stored_tensors(file)] == tensors
    found = read(tmp_path)
    assert list(found) == ["a", "b"]
    assert all(same_bits(found[name], arrays[name]) for name in arrays)


@pytest.mark.parametrize("dtype", ["bfloat16", "float8_e4m3fn", "float8_e5m2"])
def test_every_value_of_a_small_float_comes_back(tmp_path, dtype):
    kind = np.dtype(getattr(ml_dtypes, dtype))
    patterns = np.arange(1 << (8 * kind.itemsize), dtype=f"u{kind.itemsize}")
    writer = ShardedWriter(tmp_path, [stored("all", dtype, patterns.shape)])
    writer.put("all", patterns.view(kind))
    writer.close()
    (array,) = read(tmp_path).values()
    assert array.dtype == kind
    assert np.array_equal(array.view(patterns.dtype), patterns)


@pytest.mark.parametrize("shape", [(), (0, 4), (1,), (2, 3, 4)])
def test_every_shape_comes_back(tmp_path, shape):
    arrays = write(tmp_path, [stored("odd", shape=shape), stored("plain")])
    assert all(same_bits(read(tmp_path)[name], arrays[name]) for name in arrays)


def test_arrays_that_are_not_contiguous_come_back(tmp_path):
    array = np.arange(24, dtype=np.float32).reshape(6, 4).T
    writer = ShardedWriter(tmp_path, [stored("a")])
    writer.put("a", array)
    writer.close()
    assert np.array_equal(read(tmp_path)["a"], array)


def test_the_library_reads_the_same(tmp_path):
    arrays = write(tmp_path, [stored("a"), stored("b", "int32", (7,))])
    theirs = load_file(tmp_path / "model.safetensors")
    assert {name: array.tobytes() for name, array in theirs.items()} == {n: a.tobytes() for n, a in arrays.items()}


def test_what_is_read_cannot_be_changed(tmp_path):
    write(tmp_path, [stored("a")])
    with pytest.raises(ValueError, match="read-only"):
        read(tmp_path)["a"][0, 0] = 1


# Shards.

SIX = [stored(f"t{i}") for i in range(6)]  # 96 bytes each


def test_a_small_model_is_one_file_without_index(tmp_path):
    write(tmp_path, SIX)
    assert names(tmp_path) == ["model.safetensors"]


def test_a_large_model_is_several_files_with_an_index(tmp_path):
    arrays = write(tmp_path, SIX, shard_bytes=200)
    files = [f"model-{i:05}-of-00003.safetensors" for i in (1, 2, 3)]
    assert names(tmp_path) == [*files, INDEX]
    index = json.loads((tmp_path / INDEX).read_text())
    assert index == {
        "metadata": {"total_size": 576},
        "weight_map": {f"t{i}": files[i // 2] for i in range(6)},
    }
    assert files_of(tmp_path) == [tmp_path / name for name in files]
    assert all(same_bits(read(tmp_path)[name], arrays[name]) for name in arrays)


def test_a_tensor_larger_than_a_shard_gets_a_file_of_its_own(tmp_path):
    tensors = [stored("small", shape=(4,)), stored("large", shape=(100,)), stored("last", shape=(4,))]
    write(tmp_path, tensors, shard_bytes=64)
    assert [[t.name for t in stored_tensors(file)] for file in files_of(tmp_path)] == [["small"], ["large"], ["last"]]


def test_tensors_may_come_in_any_order_and_the_files_are_the_same(tmp_path):
    contents = []
    for folder, order in ((tmp_path / "a", range(6)), (tmp_path / "b", (5, 0, 3, 1, 4, 2))):
        folder.mkdir()
        writer = ShardedWriter(folder, SIX, shard_bytes=200)
        for i in order:
            writer.put(f"t{i}", random_bits(SIX[i], i))
        writer.close()
        contents.append({path.name: path.read_bytes() for path in folder.iterdir()})
    assert contents[0] == contents[1]


def test_a_shard_is_on_disk_as_soon_as_it_is_full(tmp_path):
    writer = ShardedWriter(tmp_path, SIX, shard_bytes=200)
    writer.put("t0", random_bits(SIX[0]))
    assert names(tmp_path) == []
    writer.put("t1", random_bits(SIX[1]))
    assert names(tmp_path) == ["model-00001-of-00003.safetensors"]


# The manifest is kept to.


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("a", np.zeros((6, 4), np.float32), "tensor a is float32[6, 4], the manifest says float32[4, 6]"),
        ("a", np.zeros((4, 6), np.float64), "tensor a is float64[4, 6], the manifest says float32[4, 6]"),
        ("a", np.zeros((4, 6), np.int32), "tensor a is int32[4, 6], the manifest says float32[4, 6]"),
        ("b", np.zeros((4, 6), np.float32), "tensor b is not in the manifest, or came twice"),
    ],
)
def test_a_tensor_that_is_not_as_announced_is_refused(tmp_path, name, array, message):
    writer = ShardedWriter(tmp_path, [stored("a")])
    with pytest.raises(CheckpointError, match=re.escape(message)):
        writer.put(name, array)
    assert names(tmp_path) == []


def test_a_tensor_that_comes_twice_is_refused(tmp_path):
    writer = ShardedWriter(tmp_path, [stored("a"), stored("b")])
    writer.put("a", random_bits(stored("a")))
    with pytest.raises(CheckpointError, match="came twice"):
        writer.put("a", random_bits(stored("a")))


def test_a_tensor_that_never_came_is_named(tmp_path):
    writer = ShardedWriter(tmp_path, SIX)
    writer.put("t1", random_bits(SIX[1]))
    with pytest.raises(CheckpointError, match=r"never came: t0, t2, t3, t4, t5$"):
        writer.close()


def test_a_manifest_that_names_a_tensor_twice_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="names a tensor twice"):
        ShardedWriter(tmp_path, [stored("a"), stored("a")])


# Damage and lies.


def raw_file(path, header, data):
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)
    return path


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def read_all(path):
    stored_tensors(path)
    return dict(read_tensors(path))


def test_the_raw_file_of_these_tests_is_readable_when_it_tells_the_truth(tmp_path):
    path = raw_file(tmp_path / "a.safetensors", {"a": entry()}, struct.pack("<2f", 1.0, 2.0))
    assert read_all(path)["a"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize("keep", [0, 5, 8, 40, -1])
def test_a_truncated_file_is_an_error(tmp_path, keep):
    write(tmp_path, [stored("a")])
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        read_all(path)


LIES = {
    "more numbers than bytes": ({"a": entry(shape=(3,), offsets=(0, 12))}, 8),
    "shape against offsets": ({"a": entry(shape=(3,))}, 8),
    "type against offsets": ({"a": entry(dtype="F64")}, 8),
    "bytes that nothing owns": ({"a": entry()}, 12),
    "overlap": ({"a": entry(), "b": entry(offsets=(4, 12))}, 12),
    "hole": ({"a": entry(), "b": entry(offsets=(12, 20))}, 20),
    "end before begin": ({"a": entry(offsets=(8, 0))}, 8),
    "negative offset": ({"a": entry(offsets=(-8, 0))}, 8),
    "negative size": ({"a": entry(shape=(-2,))}, 8),
    "product that overflows": ({"a": entry(shape=(2**62, 4, 2))}, 8),
    "unknown type": ({"a": entry(dtype="F33")}, 8),
    "type that fewbit does not have": ({"a": entry(dtype="C64", shape=(1,))}, 8),
    "no offsets": ({"a": {"dtype": "F32", "shape": [2]}}, 8),
    "no object": ([1, 2], 8),
    "no JSON": (b'{"a": ', 8),
    "no UTF-8": (b'{"\xff": 1}', 8),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_header_that_lies_is_an_error(tmp_path, lie):
    header, size = LIES[lie]
    path = raw_file(tmp_path / "a.safetensors", header, bytes(size))
    with pytest.raises(CheckpointError, match=re.escape(str(path))):
        read_all(path)


def test_a_header_longer_than_the_file_is_an_error(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(struct.pack("<Q", 2**40) + b"{}")
    with pytest.raises(CheckpointError, match="not a readable safetensors file"):
        read_all(path)


def test_a_file_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"nothing\.safetensors"):
        read_all(tmp_path / "nothing.safetensors")


# Folders and indexes.


def test_a_folder_without_weights_is_an_error(tmp_path):
    with pytest.raises(CheckpointError, match=r"holds no \.safetensors file"):
        files_of(tmp_path)


@pytest.mark.parametrize(
    "name", ["../secret.safetensors", "/etc/secret.safetensors", "sub/a.safetensors", "..\\a.safetensors", "a.bin", ""]
)
def test_an_index_that_names_a_file_elsewhere_is_refused(tmp_path, name):
    folder = tmp_path / "model"
    (folder / "sub").mkdir(parents=True)
    for there in (tmp_path / "secret.safetensors", folder / "sub" / "a.safetensors", folder / "a.bin"):
        there.write_bytes(b"")  # so that only the name can be what is refused
    (folder / INDEX).write_text(json.dumps({"weight_map": {"t": name}}))
    with pytest.raises(CheckpointError, match=r"only plain \.safetensors names are read"):
        files_of(folder)


def test_an_index_that_names_a_missing_file_says_which(tmp_path):
    write(tmp_path, SIX, shard_bytes=200)
    (tmp_path / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"names model-00002-of-00003\.safetensors, which is not there"):
        files_of(tmp_path)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"weight_map": []}', '{"weight_map": {"a": ["b"]}}', "\x00"])
def test_an_index_that_is_none_is_an_error(tmp_path, content):
    (tmp_path / INDEX).write_text(content)
    with pytest.raises(CheckpointError, match="is not a safetensors index"):
        files_of(tmp_path)
