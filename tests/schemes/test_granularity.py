"""Granularities: the box that one scale covers."""

import pytest

from fewbit.errors import SchemeError
from fewbit.numerics.groups import counts
from fewbit.schemes.granularity import PerChannel, PerGroup, PerTensor, PerTile, PerToken


@pytest.mark.parametrize(
    ("granularity", "shape", "box", "scales"),
    [
        (PerTensor(), (8, 100), (8, 100), (1, 1)),
        (PerTensor(), (5,), (5,), (1,)),
        (PerChannel(), (8, 100), (1, 100), (8, 1)),
        (PerChannel(1), (8, 100), (8, 1), (1, 100)),
        (PerChannel(0, 3), (8, 100), (3, 100), (3, 1)),
        (PerChannel(), (8, 3, 5, 5), (1, 3, 5, 5), (8, 1, 1, 1)),
        (PerGroup(64), (8, 100), (1, 64), (8, 2)),
        (PerGroup(64), (8, 64), (1, 64), (8, 1)),
        (PerGroup(64), (8, 10), (1, 10), (8, 1)),
        (PerGroup(1), (2, 3), (1, 1), (2, 3)),
        (PerGroup(4), (2, 3, 10), (1, 1, 4), (2, 3, 3)),
        (PerTile(128, 128), (300, 64), (128, 64), (3, 1)),
        (PerTile(2, 4), (5, 3, 10), (1, 2, 4), (5, 2, 3)),
        (PerToken(), (2, 5, 64), (1, 1, 64), (2, 5, 1)),
    ],
    ids=str,
)
def test_the_box_is_what_one_scale_covers(granularity, shape, box, scales):
    assert granularity.box(shape) == box
    assert counts(shape, box) == scales


@pytest.mark.parametrize(
    ("granularity", "word"),
    [
        (PerTensor(), "tensor"),
        (PerChannel(), "channel"),
        (PerChannel(1), "channel:1"),
        (PerChannel(0, 4), "channel:0x4"),
        (PerGroup(32), "g32"),
        (PerTile(128, 64), "tile128x64"),
        (PerToken(), "token"),
    ],
)
def test_each_has_its_word(granularity, word):
    assert granularity.name == word


@pytest.mark.parametrize("size", [0, -64])
def test_a_group_holds_at_least_one_number(size):
    with pytest.raises(SchemeError, match=f"^group size {size} is not positive; 128, 64 and 32 are usual$"):
        PerGroup(size)


@pytest.mark.parametrize(("rows", "columns"), [(0, 128), (128, -1)])
def test_a_tile_holds_at_least_one_number(rows, columns):
    with pytest.raises(SchemeError, match=f"^tile {rows}x{columns} is empty; 128x128 is usual$"):
        PerTile(rows, columns)


def test_an_axis_that_is_not_there_is_named():
    with pytest.raises(SchemeError, match=r"^channel:2 needs axis 2; an array of shape \(8, 64\) does not have it$"):
        PerChannel(2).box((8, 64))
    with pytest.raises(SchemeError, match=r"^tile4x4 needs two axes; the array has shape \(8,\)$"):
        PerTile(4, 4).box((8,))
    with pytest.raises(SchemeError, match=r"^channel -?\dx\d is of an axis below 0 or empty; 0x1 is usual$"):
        PerChannel(-1)
