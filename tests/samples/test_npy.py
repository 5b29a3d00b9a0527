"""Files of one array: all samples in one, or a sample or a batch each."""

import tracemalloc

import numpy as np
import pytest

from fewbit.errors import CalibrationError, NonFiniteError
from fewbit.samples.model_input import ModelInput
from fewbit.samples.npy import NpyFile, NpyFolder

X = ModelInput("x", np.dtype("float32"), ("n", 3))
IDS = ModelInput("ids", np.dtype("int64"), ("n", "length"))


def save(folder, arrays):
    for name, array in arrays.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(folder / name, array)
    return folder


def samples(count, width=3):
    return [np.full(width, number, np.float32) for number in range(count)]


def test_one_file_holds_all_samples(tmp_path):
    np.save(tmp_path / "x.npy", np.stack(samples(5)))
    store = NpyFile(tmp_path / "x.npy", [X])
    assert len(store) == 5
    assert store.take([4, 0])[:, 0].tolist() == [4, 0]


def test_files_of_a_sample_are_stacked_in_the_order_of_their_names(tmp_path):
    save(tmp_path, {f"{10 + number}.npy": sample for number, sample in reversed(list(enumerate(samples(4))))})
    store = NpyFolder(tmp_path, [X])
    assert (len(store), store.sizes, store.names) == (4, None, ["10.npy", "11.npy", "12.npy", "13.npy"])
    batch = store.take([1, 3])
    assert batch.shape == (2, 3)
    assert batch[:, 0].tolist() == [1, 3]


def test_files_with_as_many_axes_as_the_model_takes_are_batches(tmp_path):
    save(tmp_path, {"a.npy": np.zeros((2, 3), np.float32), "b.npy": np.ones((5, 3), np.float32)})
    store = NpyFolder(tmp_path, [X])
    assert (len(store), store.sizes) == (2, [2, 5])
    assert store.take([1]).shape == (5, 3)


def test_a_sample_may_be_a_single_number(tmp_path):
    save(tmp_path, {"a.npy": np.float32(1), "b.npy": np.float32(2)})
    assert NpyFolder(tmp_path, [ModelInput("x", np.dtype("float32"), ("n",))]).take([0, 1]).tolist() == [1, 2]


def test_a_module_declares_nothing_so_files_are_batches(tmp_path):
    save(tmp_path, {"a.npy": np.zeros((2, 3), np.float32)})
    assert NpyFolder(tmp_path, None).sizes == [2]


def test_several_inputs_have_a_folder_each(tmp_path):
    ids = np.arange(7)[None]
    save(tmp_path, {"x/1.npy": np.zeros((1, 3), np.float32), "ids/1.npy": ids, "x/2.npy": np.ones((2, 3), np.float32)})
    np.save(tmp_path / "ids" / "2.npy", np.repeat(ids, 2, 0))
    store = NpyFolder(tmp_path, [X, IDS])
    batch = store.take([1])
    assert sorted(batch) == ["ids", "x"]
    assert (batch["x"].shape, batch["ids"].shape) == ((2, 3), (2, 7))


def test_labels_beside_the_samples_are_no_sample(tmp_path):
    save(tmp_path, {"a.npy": np.zeros(3, np.float32), "labels.npy": np.zeros(1, np.int64)})
    assert NpyFolder(tmp_path, [X]).names == ["a.npy"]


def test_memory_is_that_of_a_batch_however_many_files_there_are(tmp_path):
    def peak(count):
        folder = tmp_path / str(count)
        save(folder, {f"{number}.npy": np.zeros((1 << 16), np.float32) for number in range(count)})
        tracemalloc.start()
        store = NpyFolder(folder, [ModelInput("x", np.dtype("float32"), ("n", 1 << 16))])
        for place in range(count):
            store.take([place])
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = peak(4), peak(64)
    # A file is 256 kB; of each one only its name and shape are kept, about 2 kB.
    assert many < few + 60 * 4000


F32 = np.float32
WRONG = {
    "neither a sample nor a batch": (
        {"a.npy": np.zeros((1, 2, 3), F32)},
        [X],
        r"a.npy is \(1, 2, 3\); input 'x' takes samples of \(3,\), or batches of \(n, 3\), all files alike",
    ),
    "samples beside batches": ({"a.npy": np.zeros(3, F32), "b.npy": np.zeros((1, 3), F32)}, [X], r"b.npy is \(1, 3\)"),
    "size": ({"a.npy": np.zeros(4, F32)}, [X], r"a.npy: input 'x' takes shape \(n, 3\) and is given \(1, 4\)"),
    "type": ({"a.npy": np.zeros((1, 3))}, [X], "a.npy: input 'x' takes float32 and is given float64"),
    "objects": ({"a.npy": np.asarray([None])}, [X], "a.npy holds Python objects, which are pickles"),
    "no name for two inputs": (
        {"a.npy": np.zeros(3, F32)},
        [X, IDS],
        "holds one array without a name, and the inputs of the model are 'x', 'ids'; give an array by the name",
    ),
    "unknown input": (
        {"x/a.npy": np.zeros(3, F32), "id/a.npy": np.zeros(3, int)},
        [X, IDS],
        "has no 'ids' and holds 'id'",
    ),
    "other names": (
        {"x/a.npy": np.zeros(3, F32), "ids/b.npy": np.zeros(3, int)},
        [X, IDS],
        r"ids and .*x must hold files of the same names; 'a.npy' is in one of them only",
    ),
    "samples of one, batches of the other": (
        {"x/a.npy": np.zeros(3, F32), "ids/a.npy": np.zeros((1, 3), int)},
        [X, IDS],
        "holds samples for some inputs and batches for others",
    ),
    "batches of other sizes": (
        {"x/a.npy": np.zeros((1, 3), F32), "ids/a.npy": np.zeros((2, 3), int)},
        [X, IDS],
        r"a.npy holds different numbers of samples \('ids' 2, 'x' 1\)",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_folder_that_does_not_fit_is_refused_with_the_reason(tmp_path, case):
    arrays, inputs, message = WRONG[case]
    with pytest.raises(CalibrationError, match=message):
        NpyFolder(save(tmp_path, arrays), inputs)


def test_samples_of_several_lengths_go_one_at_a_time(tmp_path):
    save(tmp_path, {"a.npy": np.arange(7), "b.npy": np.arange(5)})
    store = NpyFolder(tmp_path, [IDS])
    assert store.take([1]).shape == (1, 5)
    with pytest.raises(CalibrationError, match=r"b.npy is \(5,\) of int64 .*; .* use a batch size of 1"):
        store.take([0, 1])


def test_nan_is_named_with_its_file(tmp_path):
    save(tmp_path, {"a.npy": np.zeros(3, F32), "b.npy": np.asarray([0, np.nan, 0], F32)})
    with pytest.raises(NonFiniteError, match=r"b.npy holds NaN in sample 0"):
        NpyFolder(tmp_path, [X]).take([0, 1])
    np.save(tmp_path / "one.npy", np.asarray([[0, 0, 0], [0, 0, np.nan]], F32))
    with pytest.raises(NonFiniteError, match=r"one.npy holds NaN in sample 1"):
        NpyFile(tmp_path / "one.npy", [X]).take([0, 1])


def test_a_file_that_was_cut_short_is_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 3), F32))
    content = (tmp_path / "a.npy").read_bytes()
    (tmp_path / "a.npy").write_bytes(content[:-8])
    with pytest.raises(
        CalibrationError, match=r"a.npy should have 176 bytes for shape \(4, 3\) of float32, but has 168"
    ):
        NpyFile(tmp_path / "a.npy", [X])
    (tmp_path / "a.npy").write_text("no array at all")
    with pytest.raises(CalibrationError, match=r"a.npy is no array that can be read: .*; save it with numpy.save"):
        NpyFile(tmp_path / "a.npy", [X])


def test_a_file_that_shrinks_while_it_is_read_is_named(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros((4, 3), F32))
    store = NpyFile(tmp_path / "a.npy", [X])
    (tmp_path / "a.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-8])
    with pytest.raises(CalibrationError, match=r"a.npy ends too early; fetch or save it again"):
        store.take([3])
