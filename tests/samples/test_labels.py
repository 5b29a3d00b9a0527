"""Classes of samples: in the order of the samples, or by the names of files."""

import numpy as np
import pytest

from fewbit.errors import CalibrationError
from fewbit.samples.labels import read_labels

NAMES = ["a.png", "b.png", "dogs/c.png"]


def labels(tmp_path, text, names=NAMES):
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    return read_labels(tmp_path / "labels.csv", names).tolist()


@pytest.mark.parametrize(
    "text",
    [
        "3\n1\n2\n",
        "class\n3\n1\n2",
        "b.png,1\na.png,3\ndogs/c.png,2\n",
        'file,label\r\n"a.png",3\r\nb.png, 1\r\n\r\ndogs/c.png,2\r\n',
        "\ufeffa.png,3\nb.png,1\ndogs/c.png,2",
    ],
)
def test_a_table_gives_the_classes_in_the_order_of_the_samples(tmp_path, text):
    assert labels(tmp_path, text) == [3, 1, 2]


def test_an_array_may_have_more_axes(tmp_path):
    np.save(tmp_path / "labels.npy", np.asarray([[1, 2], [3, 4]], np.uint8))
    found = read_labels(tmp_path / "labels.npy", None)
    assert found.dtype == np.int64
    assert found.tolist() == [[1, 2], [3, 4]]


WRONG = {
    "no class": ("a.png,1\nb.png,cat\n", "labels.csv, line 2: 'cat' is no class; classes are whole numbers from 0 on"),
    "negative": ("3\n-1\n", "line 2: '-1' is no class"),
    "unknown file": ("a.png,1\nz.png,1\n", "line 2: 'z.png' is not among the samples"),
    "twice": ("a.png,1\na.png,1\n", "line 2: 'a.png' is named twice"),
    "missing": ("a.png,1\n", "say nothing of 'b.png' and 1 more; add them"),
    "columns": ("a.png,1\n2\n", r"have lines of \[1, 2\] cells; a line is a class, or a file's name and its class"),
    "more columns": ("a,b,1\n", r"have lines of \[3\] cells"),
    "nothing": ("", "hold no line; give a class for each sample"),
    "titles alone": ("file,label\n", "hold no line"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_table_that_is_wrong_is_refused_with_its_line(tmp_path, case):
    text, message = WRONG[case]
    with pytest.raises(CalibrationError, match=message):
        labels(tmp_path, text)


def test_names_say_nothing_of_samples_in_one_file(tmp_path):
    with pytest.raises(CalibrationError, match="name files, and the samples are in one; give a class a line"):
        labels(tmp_path, "a.png,1\n", names=None)


def test_other_files_are_refused(tmp_path):
    with pytest.raises(CalibrationError, match=r"no labels '.*none.csv': no such file"):
        read_labels(tmp_path / "none.csv", None)
    (tmp_path / "labels.txt").write_text("1")
    with pytest.raises(CalibrationError, match=r"labels .*labels.txt are neither .npy nor .csv"):
        read_labels(tmp_path / "labels.txt", None)
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe1")
    with pytest.raises(CalibrationError, match=r"cannot read labels .*bytes.csv"):
        read_labels(tmp_path / "bytes.csv", None)
    for wrong, message in (
        (np.zeros(3), "are float64 of shape"),
        (np.asarray([1, -1]), "hold -1; classes count from 0"),
    ):
        np.save(tmp_path / "labels.npy", wrong)
        with pytest.raises(CalibrationError, match=message):
            read_labels(tmp_path / "labels.npy", None)
