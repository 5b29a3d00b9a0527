"""Archives of arrays: samples by number, nothing read that was not asked for, and every damage named."""

import gc
import tracemalloc
import zipfile

import numpy as np
import pytest

from fewbit.errors import CalibrationError, NonFiniteError
from fewbit.samples.batches import Cut
from fewbit.samples.model_input import ModelInput
from fewbit.samples.npz import NpzFile

X = np.arange(40, dtype=np.float32).reshape(10, 4)
IDS = np.arange(10, dtype=np.int64)
INPUTS = [ModelInput("x", np.dtype("float32"), ("n", 4)), ModelInput("ids", np.dtype("int64"), (None,))]


@pytest.fixture
def saved(tmp_path):
    def save(*, packed=False, **arrays):
        (np.savez_compressed if packed else np.savez)(tmp_path / "data.npz", **arrays)
        return tmp_path / "data.npz"

    return save


@pytest.mark.parametrize("packed", [False, True])
def test_samples_come_by_number_in_any_order(saved, packed):
    store = NpzFile(saved(packed=packed, x=X, ids=IDS), INPUTS)
    assert len(store) == 10
    for places in ([0, 1, 2], [7, 8], [1, 2, 6, 0], [9], []):
        batch = store.take(places)
        assert list(batch) == ["x", "ids"]
        assert np.array_equal(batch["x"], X[places])
        assert np.array_equal(batch["ids"], IDS[places])


def test_arrays_without_names_are_inputs_in_their_order(tmp_path):
    many = [np.full((2, 1), number, np.float32) for number in range(12)]
    np.savez(tmp_path / "many.npz", *many)  # arr_10 is behind arr_9, not behind arr_1
    assert [int(array[0, 0]) for array in NpzFile(tmp_path / "many.npz", None).take([0])] == list(range(12))
    np.savez(tmp_path / "one.npz", X)
    assert np.array_equal(NpzFile(tmp_path / "one.npz", INPUTS[:1]).take([3]), X[3:4])
    with pytest.raises(CalibrationError, match="has no 'x', 'ids' and holds 'arr_0'"):
        NpzFile(tmp_path / "one.npz", INPUTS)


def test_the_other_byte_order_is_turned_round(saved):
    batch = NpzFile(saved(x=X.astype(">f4"), ids=IDS.astype(">i8")), INPUTS).take([4, 5])
    assert batch["x"].dtype == np.float32
    assert np.array_equal(batch["x"], X[4:6])


def test_labels_are_no_input_unless_the_model_has_one_of_that_name(saved):
    path = saved(x=X, labels=IDS)
    assert list(NpzFile(path, INPUTS[:1]).take([0])) == ["x"]
    assert np.array_equal(NpzFile(path, INPUTS[:1]).labels, IDS)
    own = [INPUTS[0], ModelInput("labels", np.dtype("int64"), (None,))]
    store = NpzFile(path, own)
    assert list(store.take([0])) == ["x", "labels"]
    assert store.labels is None


@pytest.mark.parametrize("packed", [False, True])
def test_memory_is_that_of_a_batch_however_many_samples_there_are(saved, packed):
    def peak(count):
        path = saved(packed=packed, x=np.zeros((count, 1024), np.float32))
        tracemalloc.start()
        store = NpzFile(path, None)
        for start in range(0, count, 16):
            store.take(range(start, start + 16))
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = peak(64), peak(4096)  # 256 kB and 16 MB
    assert many < few + (1 << 17)


WRONG = {
    "missing": ({"x": X}, "data.npz has no 'ids'; the inputs of the model are 'x', 'ids'"),
    "unknown": ({"x": X, "ids": IDS, "z": X}, "data.npz holds 'z', which the model does not know; the inputs"),
    "type": (
        {"x": X.astype(np.float64), "ids": IDS},
        r"data.npz: input 'x' takes float32 and is given float64; convert it with .astype\('float32'\)",
    ),
    "shape": ({"x": X[:, :3], "ids": IDS}, r"data.npz: input 'x' takes shape \(n, 4\) and is given \(1, 3\); reshape"),
    "counts": ({"x": X[:9], "ids": IDS}, r"data.npz holds different numbers of samples \('x' 9, 'ids' 10\)"),
    "counts of labels": (
        {"x": X, "ids": IDS, "labels": IDS[1:]},
        "different numbers of samples .*'labels' 9",
    ),
    "no samples": ({"x": X[:0], "ids": IDS[:0]}, "data.npz holds no sample; give some"),
    "a single number": ({"x": np.float32(1), "ids": IDS}, "'x' is a single number; the first axis must be that of"),
    "objects": (
        {"x": np.asarray([X, None], object), "ids": IDS[:2]},
        "data.npz: 'x' holds Python objects, which are pickles: reading one can run code, so it is not read",
    ),
    "texts": ({"x": np.asarray(["a"] * 10), "ids": IDS}, "data.npz: 'x' holds <U1, and models take numbers"),
    "fields": (
        {"x": np.zeros(10, [("a", np.float32)]), "ids": IDS},
        r"'x' holds \[\('a', '<f4'\)\], and models take numbers",
    ),
    "Fortran order": (
        {"x": np.asfortranarray(X), "ids": IDS},
        r"'x' lies in Fortran order, .*; save numpy.ascontiguousarray of it",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_an_archive_that_does_not_fit_is_refused_with_the_reason(saved, case):
    arrays, message = WRONG[case]
    with pytest.raises(CalibrationError, match=message):
        NpzFile(saved(**arrays), INPUTS)


def test_nan_is_named_with_its_sample_and_infinity_is_let_through(saved):
    bad = X.copy()
    bad[7, 2] = np.nan
    store = NpzFile(saved(x=bad, ids=IDS), INPUTS)
    store.take([0, 1])
    with pytest.raises(NonFiniteError, match=r"data.npz: 'x' holds NaN in sample 7; repair it, or leave it out"):
        store.take([5, 7, 8])
    bad[7, 2] = -np.inf
    assert NpzFile(saved(x=bad, ids=IDS), INPUTS).take([7])["x"][0, 2] == -np.inf


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    path.write_bytes(b"PK\x03\x04 but nothing behind it")
    with pytest.raises(CalibrationError, match=r"data.npz is no .npz archive: .*; save it with numpy.savez"):
        NpzFile(path, None)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("weights.bin", b"abc")
    with pytest.raises(CalibrationError, match=r"'weights.bin' is no array; save arrays alone"):
        NpzFile(path, None)
    with zipfile.ZipFile(path, "w"):
        pass
    with pytest.raises(CalibrationError, match="holds no sample"):
        NpzFile(path, None)


def header(shape, descr="<f4"):
    text = f"{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text.encode()


LIES = {
    "too many samples": (header((10**9, 4)) + bytes(160), "should have 16000000128 bytes for shape"),
    "too few samples": (header((2, 4)) + bytes(160), "should have 160 bytes for shape .*, but has 288"),
    "a negative size": (header((-1, 4)), "is no array that can be read: shape"),
    "no type": (header((1, 4), "<q9"), "is no array that can be read"),
    "no array": (b"\x93NUMPY\x01\x00", "is no array that can be read"),
    "a pickle": (b"\x80\x04K\x01.", "is no array that can be read: .*magic"),
    "a version for named fields": (
        b"\x93NUMPY\x03\x00" + bytes(200),
        r"is of version 3.0, .*; save one array of numbers",
    ),
}


@pytest.mark.parametrize("case", LIES)
def test_a_header_that_lies_is_refused_before_memory_is_taken(tmp_path, case):
    content, message = LIES[case]
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.npy", content)
    tracemalloc.start()
    with pytest.raises(CalibrationError, match=message):
        NpzFile(path, None)
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


def test_an_archive_that_claims_more_than_it_can_hold_is_refused(tmp_path):
    path = tmp_path / "data.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("x.npy", header((4, 4)) + bytes(64))
    content = bytearray(path.read_bytes())
    entry = content.index(b"PK\x01\x02")
    content[entry + 24 : entry + 28] = (2**31).to_bytes(4, "little")  # the size of the member, unpacked
    path.write_bytes(content)
    with pytest.raises(CalibrationError, match="'x' claims 2147483648 bytes, more than the file can hold"):
        NpzFile(path, None)


@pytest.mark.parametrize("packed", [False, True])
def test_damage_inside_of_an_array_is_named(saved, packed):
    random = np.random.default_rng(0).integers(0, 256, (64, 512), np.uint8)
    path = saved(packed=packed, x=random)
    content = bytearray(path.read_bytes())
    content[len(content) // 2 : len(content) // 2 + 64] = bytes(64)
    path.write_bytes(content)
    store = NpzFile(path, None)
    with pytest.raises(CalibrationError, match=r"data.npz: 'x' cannot be read: .*; fetch or save it again"):
        list(Cut(store, range(64), 8))


@pytest.mark.parametrize("packed", [False, True])
def test_an_archive_that_ends_as_garbage_in_a_cycle_leaves_no_file_open(tmp_path, packed):
    path = tmp_path / "data.npz"
    (np.savez_compressed if packed else np.savez)(path, x=np.ones((4, 3), np.float32))
    gc.freeze()  # collections then look at what is made here alone, not at all that was imported
    for _ in range(20):  # which part of a cycle is taken apart first is a matter of luck
        holder: dict[str, object] = {"file": NpzFile(path, None)}
        holder["file"].take([0, 1])
        holder["self"] = holder
        del holder
        gc.collect()  # a warning of an open file fails the test
    gc.unfreeze()
    assert np.array_equal(NpzFile(path, None).take([3])["x"], np.ones((1, 3), np.float32))
