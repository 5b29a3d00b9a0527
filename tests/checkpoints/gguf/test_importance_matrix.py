"""Importance matrices: read as they were written, in both forms; damage is named."""

import struct

import gguf
import numpy as np
import pytest

from fewbit.checkpoints.gguf.importance_matrix import (
    ImportanceMatrix,
    read_importance_matrix,
    write_importance_matrix,
)
from fewbit.errors import CheckpointError

NAMES = ("blk.0.attn_q.weight", "blk.0.ffn_down_exps.weight")


def matrix():
    rng = np.random.default_rng(0)
    sums = {NAMES[0]: rng.random((1, 8), np.float32) * 9, NAMES[1]: rng.random((3, 4), np.float32) * 9}
    counts = {NAMES[0]: np.asarray([5], np.float32), NAMES[1]: np.asarray([2, 0, 7], np.float32)}
    return ImportanceMatrix(sums=sums, counts=counts, datasets=("text.txt",), chunks=4, chunk_size=512)


def test_a_matrix_is_written_as_the_tools_of_llama_cpp_read_it(tmp_path):
    path = write_importance_matrix(matrix(), tmp_path / "i.gguf")
    reader = gguf.GGUFReader(path)
    assert reader.fields["general.type"].contents() == "imatrix"
    assert reader.fields["imatrix.datasets"].contents() == ["text.txt"]
    assert reader.fields["imatrix.chunk_count"].contents() == 4
    assert reader.fields["imatrix.chunk_size"].contents() == 512
    tensors = {own.name: own for own in reader.tensors}
    assert set(tensors) == {f"{name}.{part}" for name in NAMES for part in ("in_sum2", "counts")}
    assert tensors[f"{NAMES[1]}.in_sum2"].shape.tolist() == [4, 3]
    assert tensors[f"{NAMES[1]}.counts"].shape.tolist() == [1, 3]
    assert np.array_equal(tensors[f"{NAMES[1]}.in_sum2"].data, matrix().sums[NAMES[1]])


def test_a_matrix_comes_back_and_what_was_never_reached_counts_one(tmp_path):
    found = read_importance_matrix(write_importance_matrix(matrix(), tmp_path / "i.gguf"))
    for name in NAMES:
        assert np.array_equal(found.sums[name], matrix().sums[name])
        assert np.array_equal(found.counts[name], matrix().counts[name])
    assert (found.datasets, found.chunks, found.chunk_size) == (("text.txt",), 4, 512)
    assert np.array_equal(found.mean_squares(NAMES[0]), matrix().sums[NAMES[0]] / np.float32(5))
    assert (found.mean_squares(NAMES[1])[1] == 1).all()


def legacy(entries, tail=b""):
    content = struct.pack("<i", len(entries))
    for name, calls, values in entries:
        content += struct.pack("<i", len(name)) + name + struct.pack(f"<ii{len(values)}f", calls, len(values), *values)
    return content + tail


def test_a_legacy_file_is_read(tmp_path):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(legacy([(b"blk.0.attn_q.weight", 4, [1.0, 8.0])], struct.pack("<ii", 7, 4) + b"wiki"))
    found = read_importance_matrix(path)
    assert found.mean_squares("blk.0.attn_q.weight").tolist() == [[0.25, 2.0]]
    assert (found.datasets, found.chunks) == (("wiki",), 7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not the whole of one"),
        (struct.pack("<i", -3), "claims -3 entries"),
        (struct.pack("<ii", 1, 1 << 30), "claims a name of 1073741824 bytes"),
        (struct.pack("<ii", 1, 1) + b"a" + struct.pack("<ii", 1, 1 << 30), "claims 1073741824 numbers for 'a'"),
        (legacy([(b"a", 1, [1.0])])[:-2], "claims 1 numbers for 'a' and holds fewer"),
        (legacy([(b"a", 1, [float("nan")])]), "is not finite, or below 0"),
        (legacy([(b"a", 1, [-1.0])]), "is not finite, or below 0"),
        (legacy([(b"\xff", 1, [1.0])]), "is no importance matrix"),
        (legacy([(b"../a", 1, [1.0])]), "tensor name '../a' reads as a path out of its folder"),
        (legacy([(b"a", -1, [1.0])]), "is not finite, or below 0"),
        (legacy([(b"a", 1, [1.0])] * 2), "names 'a' twice"),
        (legacy([(b"a", 1, [1.0])], struct.pack("<i", 7)), "not the whole of one"),
        (legacy([(b"a", 1, [1.0])], struct.pack("<ii", 7, 4) + b"wiki!"), "a text of 4 bytes, and 5 follow"),
        (struct.pack("<i", 1) + legacy([(b"a", 1, [1.0]), (b"b", 1, [1.0])])[4:], "claims 1 entries and a text of"),
    ],
)
def test_damaged_legacy_files_are_named(tmp_path, content, message):
    path = tmp_path / "imatrix.dat"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message):
        read_importance_matrix(path)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({"a.in_sum2": [[1.0, 2.0]]}, "a.in_sum2 has no a.counts of 1 numbers beside it"),
        ({"a.in_sum2": [[1.0], [2.0]], "a.counts": [[1.0]]}, "a.in_sum2 has no a.counts of 2 numbers beside it"),
        ({"a.counts": [[1.0]]}, r"a.counts counts what no .in_sum2 beside it sums"),
        ({"a.in_sum2": [[1.0]], "a.counts": [[-1.0]]}, "what it holds of 'a' is not finite, or below 0"),
        ({"a.in_sum2": [[float("nan")]], "a.counts": [[1.0]]}, "what it holds of 'a' is not finite, or below 0"),
    ],
)
def test_sums_and_counts_that_do_not_fit_are_named(tmp_path, tensors, message):
    path = tmp_path / "i.gguf"
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    for name, numbers in tensors.items():
        writer.add_tensor(name, np.asarray(numbers, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=message):
        read_importance_matrix(path)


def test_a_model_is_no_importance_matrix(tmp_path):
    path = tmp_path / "m.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type("model")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with pytest.raises(CheckpointError, match=r"its general.type is 'model'"):
        read_importance_matrix(path)


def test_sums_that_are_no_numbers_are_not_written(tmp_path):
    bad = ImportanceMatrix(sums={"a": np.asarray([[np.inf]], np.float32)}, counts={"a": np.ones(1, np.float32)})
    with pytest.raises(CheckpointError, match="are not finite"):
        write_importance_matrix(bad, tmp_path / "i.gguf")
    assert not list(tmp_path.iterdir())


def test_the_older_form_comes_back_but_for_counts(tmp_path):
    own = ImportanceMatrix(
        sums={NAMES[0]: matrix().sums[NAMES[0]]}, counts={NAMES[0]: np.asarray([5], np.float32)},
        datasets=("text.txt",), chunks=4, chunk_size=512,
    )  # fmt: skip
    found = read_importance_matrix(own.save(tmp_path / "i.dat"))
    # Times the number of chunks and divided by it, each rounded to float32.
    np.testing.assert_allclose(found.mean_squares(NAMES[0]), own.mean_squares(NAMES[0]), rtol=2.4e-7)
    assert (found.datasets, found.chunks) == (("text.txt",), 4)
    with pytest.raises(CheckpointError, match="exists"):
        own.save(tmp_path / "i.dat")


def test_the_older_form_has_no_place_for_experts(tmp_path):
    with pytest.raises(CheckpointError, match=r"has 3 matrices, which a \.dat file has no place for"):
        matrix().save(tmp_path / "i.dat")
    assert not (tmp_path / "i.dat").exists()


@pytest.mark.parametrize("name", ["i.gguf", "i.dat"])
def test_libgguf_reads_both_forms_alike(tmp_path, name):
    libgguf = pytest.importorskip("libgguf.imatrix")
    own = ImportanceMatrix(
        sums={NAMES[0]: matrix().sums[NAMES[0]]}, counts={NAMES[0]: np.asarray([5], np.float32)}, chunks=1
    )
    found = libgguf.load_imatrix(own.save(tmp_path / name))
    assert set(found) == {NAMES[0]}
    np.testing.assert_array_equal(found[NAMES[0]], own.mean_squares(NAMES[0])[0])
