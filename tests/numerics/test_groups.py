"""Boxes: each holds its slice of the array and zeros, and merging them gives the array back."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fewbit.numerics.groups import beside_boxes, box_axes, counts, merge, split


@st.composite
def arrays_and_boxes(draw):
    """Draw an array of distinct positive numbers and a box, in places larger than the array."""
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=12))
    box = tuple(draw(st.integers(1, size + 3)) for size in shape)
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape), box


def own_slice(place: tuple[int, ...], box: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(index * step, (index + 1) * step) for index, step in zip(place, box, strict=True))


@given(arrays_and_boxes())
def test_merge_undoes_split(drawn):
    values, box = drawn
    np.testing.assert_array_equal(merge(split(values, box), values.shape), values, strict=True)


@given(arrays_and_boxes())
def test_each_box_holds_its_slice_and_zeros(drawn):
    values, box = drawn
    boxes = split(values, box)
    for place in np.ndindex(counts(values.shape, box)):
        found = boxes[tuple(part for index in place for part in (index, slice(None)))]
        expected = values[own_slice(place, box)]
        assert found.shape == box
        assert found[tuple(slice(size) for size in expected.shape)].tolist() == expected.tolist()
        assert np.count_nonzero(found) == expected.size  # `values` has no zeros, so the rest is filling


@given(arrays_and_boxes())
def test_reducing_the_box_axes_leaves_one_number_a_box(drawn):
    values, box = drawn
    reduced = split(values, box).max(axis=box_axes(values.ndim))
    assert reduced.shape == counts(values.shape, box)
    for place in np.ndindex(reduced.shape):
        assert reduced[place] == values[own_slice(place, box)].max()


@given(arrays_and_boxes())
def test_parameters_beside_boxes_meet_every_number_of_their_box(drawn):
    values, box = drawn
    number = counts(values.shape, box)
    parameters = np.arange(np.prod(number)).reshape(number)
    spread = merge(np.broadcast_to(beside_boxes(parameters), split(values, box).shape), values.shape)
    for place in np.ndindex(number):
        assert (spread[own_slice(place, box)] == parameters[place]).all()


@pytest.mark.parametrize(
    ("shape", "box", "expected"),
    [
        ((4, 128), (1, 64), (4, 2)),
        ((4, 100), (1, 64), (4, 2)),
        ((4, 64), (1, 65), (4, 1)),
        ((4, 65), (1, 64), (4, 2)),
        ((300,), (128,), (3,)),
        ((2, 3, 10), (1, 1, 4), (2, 3, 3)),
        ((256, 130), (128, 128), (2, 2)),
        ((0, 64), (1, 64), (0, 1)),
    ],
)
def test_counts_round_up(shape, box, expected):
    assert counts(shape, box) == expected


@pytest.mark.parametrize("dtype", [np.float32, np.int8, np.uint8])
def test_every_framework_cuts_alike_and_keeps_the_type(dtype, xp):
    values = np.arange(1, 4 * 25 + 1).reshape(4, 25).astype(dtype)
    boxes = split(xp.from_numpy(values), (3, 10))
    np.testing.assert_array_equal(xp.to_numpy(boxes), split(values, (3, 10)), strict=True)
    np.testing.assert_array_equal(xp.to_numpy(merge(boxes, (4, 25))), values, strict=True)
