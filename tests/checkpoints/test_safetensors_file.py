"""Safetensors files: what is written comes back to the bit, and a damaged or lying file is an error, not a number."""

import json
import re
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from fewbit.checkpoints.safetensors_file import ShardedWriter, numpy_type, read_tensors, stored_tensors
from fewbit.checkpoints.safetensors_folder import INDEX, files_of
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


def test_a_tensor_is_on_disk_as_soon_as_it_came(tmp_path):
    writer = ShardedWriter(tmp_path, SIX, shard_bytes=200)
    array = random_bits(SIX[3])
    writer.put("t3", array)
    assert names(tmp_path) == ["model-00002-of-00003.safetensors"]
    assert same_bits(dict(read_tensors(tmp_path / "model-00002-of-00003.safetensors"))["t3"], array)


def test_a_file_is_that_which_the_safetensors_library_writes(tmp_path):
    tensors = [stored("b", "float16", (3,)), stored("a", "float32", (2, 3)), stored("é", "int64", (1,)),
               stored("c", "int8", (5,)), stored("none", "float32", (0, 4))]  # fmt: skip
    arrays = write(tmp_path, tensors)
    save_file(arrays, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "model.safetensors").read_bytes() == (tmp_path / "theirs").read_bytes()


def test_a_model_is_never_held_whichever_way_its_tensors_come(tmp_path):
    """A part of it, where the library's own writer takes a whole file of it."""
    tensors = [stored(f"t{i:02}", "float32", (256, 256)) for i in range(40)]
    one = tensors[0].nbytes
    writer = ShardedWriter(tmp_path, tensors)
    tracemalloc.start()
    for own in reversed(tensors):
        writer.put(own.name, np.zeros(own.shape, np.float32))
    writer.close()
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 3 * one


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
