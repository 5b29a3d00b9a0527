"""Outputs beside those of a reference: figures that can be computed by hand, and what cannot be compared."""

import math

import numpy as np
import pytest

from fewbit.errors import CalibrationError, NonFiniteError
from fewbit.evaluation.comparison import compare

F32 = np.float32


def of(*outputs):
    """A model that gives these outputs, one batch after the other."""
    left = list(outputs)
    return lambda batch: left.pop(0)


def batches(*sizes):
    return [{"x": np.zeros((size, 2), F32)} for size in sizes]


def test_the_figures_are_those_of_their_definitions():
    x = np.asarray([[3, 4], [0, 2], [1, 1]], F32)
    y = np.asarray([[3, 4], [2, 0], [1, 2]], F32)
    found = compare(of({"y": y[:2]}, {"y": y[2:]}), of({"y": x[:2]}, {"y": x[2:]}), batches(2, 1), None)
    (own,) = found.outputs
    assert found.samples == 3
    assert own.sqnr == pytest.approx(10 * math.log10(31 / 9))
    assert own.mean_absolute_difference == pytest.approx(5 / 6)
    assert own.cosine == pytest.approx((1 + 0 + 3 / math.sqrt(10)) / 3)
    assert own.least_cosine == 0.0
    assert (found.scores, found.predictions, found.top1_agreement) == ("y", 3, pytest.approx(1 / 3))
    assert found.accuracy is None


def test_equal_outputs_lose_nothing_and_zeros_have_a_direction():
    x = np.asarray([[1, 2], [0, 0]], F32)
    (own,) = compare(of({"y": x}), of({"y": x}), batches(2), None).outputs
    # A root and a product of roots round apart in the last bit.
    assert (own.sqnr, own.mean_absolute_difference, own.cosine, own.least_cosine) == pytest.approx((math.inf, 0, 1, 1))
    (own,) = compare(of({"y": np.zeros_like(x)}), of({"y": x}), batches(2), None).outputs
    assert (own.cosine, own.least_cosine) == (0.5, 0)


def test_accuracy_is_by_the_labels_and_needs_no_reference():
    labels = np.asarray([1, 0, 2])
    scores = np.eye(3, dtype=F32)[[1, 0, 0]]
    alone = compare(of({"y": scores[:2]}, {"y": scores[2:]}), None, batches(2, 1), labels)
    assert (alone.accuracy, alone.reference_accuracy, alone.top1_agreement) == (pytest.approx(2 / 3), None, None)
    assert (alone.outputs, alone.predictions) == ((), 3)
    exact = np.eye(3, dtype=F32)[labels]
    beside = compare(of({"y": scores}), of({"y": exact}), batches(3), labels)
    assert (beside.accuracy, beside.reference_accuracy) == (pytest.approx(2 / 3), 1.0)


def test_labels_choose_the_output_that_they_fit():
    features, scores = np.ones((2, 5), F32), np.ones((2, 7, 4), F32)
    outputs = {"features": features, "scores": scores}
    assert compare(of(outputs), of(outputs), batches(2), None).scores == "features"
    assert compare(of(outputs), of(outputs), batches(2), np.zeros((2, 7), int)).scores == "scores"


def test_images_whole_numbers_and_single_numbers_are_no_scores():
    outputs = {"image": np.ones((2, 3, 8, 8), F32), "one": np.ones((2, 1), F32), "ids": np.asarray([[1, 2], [3, 4]])}
    found = compare(of(outputs), of(outputs), batches(2), None)
    assert (found.scores, found.top1_agreement) == (None, None)
    assert [own.name for own in found.outputs] == ["image", "one", "ids"]
    message = r"labels of shape \(2,\) a batch fit no output \('image' \(2, 3, 8, 8\), .*scores are labels x classes"
    with pytest.raises(CalibrationError, match=message):
        compare(of(outputs), None, batches(2), np.zeros(2, int))


def test_whole_numbers_are_compared_by_how_many_are_the_same():
    x, y = np.asarray([[1, 2], [3, 4]]), np.asarray([[1, 2], [3, 5]])
    (own,) = compare(of({"y": y}), of({"y": x}), batches(2), None).outputs
    assert (own.equal, own.sqnr, own.cosine) == (0.75, None, None)


def test_what_cannot_be_compared_is_told_and_the_rest_compared():
    x = np.ones((2, 3), F32)
    model = {"y": x, "mine": x, "boxes": np.ones((5, 4), F32), "list": [1], "kind": x}
    reference = {"y": x, "theirs": x, "boxes": np.ones((6, 4), F32), "list": [1], "kind": x.astype(int)}
    found = compare(of(model), of(reference), batches(2), None)
    assert [own.name for own in found.outputs] == ["y"]
    assert found.left_out == (
        "output 'mine' is missing in the reference",
        "output 'boxes' has shape (5, 4), and (6, 4) in the reference",
        "output 'list' is no array",
        "output 'kind' is float32, and int64 in the reference",
        "output 'theirs' is missing in the model",
    )
    with pytest.raises(CalibrationError, match="nothing can be compared: output 'a' is missing in the reference; out"):
        compare(of({"a": x}), of({"b": x}), batches(2), None)


def test_an_output_whose_shape_differs_later_is_left_out_with_what_was_summed():
    one, other = np.ones((2, 4), F32), np.ones((3, 4), F32)
    found = compare(
        of({"y": one, "boxes": one}, {"y": one, "boxes": one}),
        of({"y": one, "boxes": one}, {"y": one, "boxes": other}),
        batches(2, 2),
        None,
    )
    assert [own.name for own in found.outputs] == ["y"]
    assert found.left_out == ("output 'boxes' has shape (2, 4), and (3, 4) in the reference",)


def test_labels_and_outputs_that_are_wrong_are_refused():
    x = np.ones((2, 3), F32)
    with pytest.raises(
        CalibrationError, match="label 3 is none of 3 classes, which count from 0; are they the labels of"
    ):
        compare(of({"y": x}), None, batches(2), np.asarray([0, 3]))
    bad = x.copy()
    bad[1, 1] = np.nan
    with pytest.raises(NonFiniteError, match="output 'y' of the model holds NaN or infinity; it cannot be measured"):
        compare(of({"y": bad}), None, batches(2), None)
    with pytest.raises(NonFiniteError, match="output 'y' of the reference holds NaN or infinity"):
        compare(of({"y": x}), of({"y": np.full_like(x, np.inf)}), batches(2), None)
