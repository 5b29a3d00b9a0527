"""What goes into a layer: counts, channels, what is clipped."""

import dataclasses

import numpy as np
import pytest
import torch

from fewbit.activation import Activation
from fewbit.evaluation.input_profile import input_profile
from fewbit.schemes.notation import parse_input_scheme, parse_scheme
from fewbit.statistics.extremes import Extremes


def fixed(rows, text="int8 static"):
    scheme = parse_input_scheme(text)
    seen = Extremes.init(rows.shape[1], rows)
    seen.update(rows)
    return Activation.calibrated(scheme, seen)


def rows(count=64, width=96, seed=0):
    return np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)


@pytest.mark.parametrize("text", ["int8 token", "int4 g32", "e4m3 token", None])
def test_every_number_of_a_small_batch_is_in_the_bins(text):
    own = rows()
    found = input_profile(own, Activation(scheme=parse_scheme(text)) if text else None)
    assert sum(found.bins) == found.numbers == found.counted == own.size
    assert (found.low, found.high) == (own.min(), own.max())
    assert bool(found.levels) == (text is not None)
    assert found.clipped is None


def test_of_many_rows_those_at_equal_distances_are_counted_and_extremes_are_of_all():
    own = rows(5000, 96)
    own[1, 3] = 50.0  # in a row that is not counted
    found = input_profile(own, None)
    assert found.counted == sum(found.bins) == own[::30].size
    assert found.numbers == own.size
    assert found.high == 50.0


def test_the_share_that_is_clipped_is_that_beyond_half_a_step():
    seen = rows()
    activation = fixed(seen)
    assert input_profile(seen, activation).clipped == 0.0
    other = seen.copy()
    other[:3, :32] = 100.0
    other[5, 0] = -100.0
    assert input_profile(other, activation).clipped == 97 / other.size
    # Rounding says the same: what is clipped comes back more than half a step off.
    step = float(activation.scale)
    assert int((np.abs(activation.rounded(other) - other) > step).sum()) == 97


def test_an_outlier_channel_is_named_with_its_multiple_of_the_median_channel():
    own = rows(width=200)
    own[:, 77] *= 1000.0
    found = input_profile(own, None)
    largest = np.abs(own).max(axis=0)
    assert found.outliers[0] == (77, pytest.approx(largest[77] / np.median(largest)))
    assert found.run == 4
    assert len(found.channels) == 50
    assert int(np.argmax(found.channels)) == 77 // 4


@pytest.mark.parametrize("text", ["int8 static", "int8 token", None])
def test_torch_gives_what_numpy_gives(text):
    own = rows()
    activation = None if text is None else fixed(own) if "static" in text else Activation(scheme=parse_scheme(text))
    other = own * 2
    assert input_profile(torch.from_numpy(other), activation) == input_profile(other, activation)


def test_half_precision_is_looked_at_as_float32():
    own = torch.from_numpy(rows()).to(torch.bfloat16)
    assert input_profile(own, None) == input_profile(own.float(), None)


@pytest.mark.parametrize("shape", [(0, 8), (8, 0)])
def test_without_numbers_there_is_no_profile(shape):
    assert input_profile(np.zeros(shape, np.float32), None) is None


def test_zeros_have_a_profile():
    found = input_profile(np.zeros((4, 8), np.float32), Activation(scheme=parse_scheme("int8 token")))
    assert (found.median, set(found.channels)) == (0.0, {0.0})
    assert sum(found.bins) == 32


def test_inputs_in_sixteen_bits_and_casts_have_no_levels_to_draw():
    for text in ("int16 token", "fp16"):
        assert input_profile(rows(), Activation(scheme=parse_scheme(text))).levels == ()


def test_a_profile_is_data():
    found = input_profile(rows(), None)
    assert all(isinstance(value, (int, float, tuple, type(None))) for value in dataclasses.astuple(found))


def test_numbers_that_are_hardly_any_stand_in_one_bin():
    rows = np.asarray([[0.0, 4.2e-45], [1.4e-45, 1.0e-44]], np.float32)
    assert input_profile(rows, None).bins[0] == 4
