"""Samples in files: what they are shows in them, and they become the batches that a model takes."""

import numpy as np
import pytest
from PIL import Image

import fewbit as fb
from fewbit.errors import CalibrationError, RecipeError
from fewbit.samples.files import BATCH, are_samples
from fewbit.samples.model_input import ModelInput

FREE = [ModelInput("x", np.dtype("float32"), ("n", 3))]
FIXED = [ModelInput("x", np.dtype("float32"), (4, 3))]


def numbered(count):
    return np.repeat(np.arange(count, dtype=np.float32)[:, None], 3, 1)


@pytest.fixture
def npz(tmp_path):
    def save(count, **more):
        np.savez(tmp_path / "data.npz", x=numbered(count), **more)
        return tmp_path / "data.npz"

    return save


def first_numbers(opened):
    return [batch["x"][:, 0].astype(int).tolist() for batch in opened.batches]


def test_batches_have_the_size_asked_for_and_the_last_one_the_rest(npz):
    opened = fb.Samples(npz(10), batch_size=4).open(FREE)
    assert first_numbers(opened) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert (len(opened.batches), opened.name) == (3, "10 samples of data.npz")
    assert [len(own) for own in first_numbers(fb.Samples(npz(70)).open(FREE))] == [BATCH, BATCH, 70 - 2 * BATCH]


def test_a_count_takes_samples_at_even_distances_and_says_so(npz):
    path = npz(10, labels=np.arange(10))
    opened = fb.Samples(path, count=4).open(FREE)
    assert first_numbers(opened) == [[0, 2, 5, 7]]
    assert opened.labels.tolist() == [0, 2, 5, 7]
    assert opened.name == "4 of 10 samples of data.npz"
    assert fb.Samples(path).open(FREE, at_most=5).name == "5 of 10 samples of data.npz"
    assert fb.Samples(path, count=6).open(FREE, at_most=5).name == "6 of 10 samples of data.npz"


def test_a_model_of_fixed_shape_gets_whole_batches_and_the_name_says_what_is_left_over(npz):
    opened = fb.Samples(npz(10)).open(FIXED)
    assert first_numbers(opened) == [[0, 1, 2, 3], [5, 6, 7, 8]]
    assert opened.name == "8 of 10 samples of data.npz"
    with pytest.raises(CalibrationError, match=r"data.npz: 3 samples, and the model takes 4 at once; give more"):
        fb.Samples(npz(3)).open(FIXED)
    with pytest.raises(RecipeError, match="batch size 2, but the model takes 4 at once; leave it out"):
        fb.Samples(npz(10), batch_size=2).open(FIXED)
    with pytest.raises(CalibrationError, match=r"take different numbers of samples at once \('x' 4, 'y' 1\)"):
        fb.Samples(npz(8, y=numbered(8))).open([*FIXED, ModelInput("y", None, (1, 3))])


def test_each_kind_shows_in_the_file(tmp_path, npz):
    np.save(tmp_path / "x.npy", numbered(3))
    (tmp_path / "arrays").mkdir()
    np.save(tmp_path / "arrays" / "1.npy", numbered(2))
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / "1.png")
    npz(3).rename(tmp_path / "no_ending")
    for name in ("x.npy", "arrays", "no_ending"):
        assert are_samples(str(tmp_path / name))
        assert len(fb.Samples(tmp_path / name).open(FREE).batches) == 1
    table = fb.Preprocessing(size=4)
    assert fb.Samples(tmp_path / "pictures", preprocessing=table).open(None).batches[0].shape == (1, 3, 4, 4)
    (tmp_path / "table.toml").write_text("size = 2")
    opened = fb.Samples(tmp_path / "pictures", preprocessing=str(tmp_path / "table.toml")).open(None)
    assert opened.batches[0].shape == (1, 3, 2, 2)
    (tmp_path / "text.txt").write_text("a text")
    for other in ("self", str(tmp_path / "text.txt"), str(tmp_path / "missing.txt"), 3, [numbered(2)]):
        assert not are_samples(other)


def test_files_of_batches_are_taken_whole(tmp_path):
    for number in range(6):
        np.save(tmp_path / f"{number}.npy", numbered(number + 1))
    np.save(tmp_path / "labels.npy", np.arange(21))
    opened = fb.Samples(tmp_path).open(FREE)
    assert [len(batch) for batch in opened.batches] == [1, 2, 3, 4, 5, 6]
    assert opened.labels.tolist() == list(range(21))
    half = fb.Samples(tmp_path, count=11).open(FREE)  # 3 of 6 files, which hold 9 of 21 samples
    assert [len(batch) for batch in half.batches] == [1, 3, 5]
    assert half.name.startswith("9 of 21 samples of ")
    assert half.labels.tolist() == [0, *range(3, 6), *range(10, 15)]
    with pytest.raises(RecipeError, match="holds a batch a file, which are not cut; leave out the batch size"):
        fb.Samples(tmp_path, batch_size=2).open(FREE)


def test_labels_lie_inside_or_beside_or_where_one_says(tmp_path, npz):
    path = npz(4, labels=np.asarray([3, 1, 2, 0]))
    assert fb.Samples(path).open(FREE).labels.tolist() == [3, 1, 2, 0]
    (tmp_path / "other.csv").write_text("7\n7\n7\n7\n")
    assert fb.Samples(path, labels=tmp_path / "other.csv").open(FREE).labels.tolist() == [7] * 4
    assert fb.Samples(npz(4)).open(FREE).labels is None
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for name in "ab":
        Image.new("RGB", (4, 4)).save(pictures / f"{name}.png")
    (pictures / "labels.csv").write_text("b.png,1\na.png,5\n")
    assert fb.Samples(pictures, preprocessing=fb.Preprocessing(size=4)).open(None).labels.tolist() == [5, 1]
    with pytest.raises(CalibrationError, match=r"other.csv has 4 labels for 2 samples; give one for each"):
        fb.Samples(pictures, preprocessing=fb.Preprocessing(size=4), labels=tmp_path / "other.csv").open(None)
    with pytest.raises(CalibrationError, match=r"the labels of .*data.npz are float32 of shape"):
        fb.Samples(npz(4, labels=np.zeros(4, np.float32))).open(FREE)


def test_what_holds_no_samples_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(CalibrationError, match=r"empty holds neither .npy files nor images; give a folder of one kind"):
        fb.Samples(tmp_path / "empty").open(FREE)
    (tmp_path / "empty" / "labels.npy").write_bytes(b"")
    with pytest.raises(CalibrationError, match="holds neither"):
        fb.Samples(tmp_path / "empty").open(FREE)
    np.save(tmp_path / "empty" / "a.npy", numbered(1))
    Image.new("RGB", (4, 4)).save(tmp_path / "empty" / "a.png")
    with pytest.raises(CalibrationError, match=r"empty holds both .npy files and images"):
        fb.Samples(tmp_path / "empty").open(FREE)
    for missing in ("missing.npz", "missing.npy", "missing"):
        with pytest.raises(CalibrationError, match=f"no samples '.*{missing}': no such file or folder"):
            fb.Samples(tmp_path / missing).open(FREE)
    (tmp_path / "text.txt").write_text("a text")
    with pytest.raises(CalibrationError, match=r"text.txt holds no samples; give an .npz or .npy file, or a folder"):
        fb.Samples(tmp_path / "text.txt").open(FREE)


def test_options_that_make_no_sense_are_refused(npz):
    for options in ({"count": 0}, {"batch_size": -1}, {"count": 1.5}):
        with pytest.raises(RecipeError, match=f"{next(iter(options))} = .* of samples; give 1 at least"):
            fb.Samples("x", **options)
    with pytest.raises(RecipeError, match="holds arrays, which are taken as they are; leave out the preprocessing"):
        fb.Samples(npz(3), preprocessing=fb.Preprocessing(size=4)).open(FREE)
