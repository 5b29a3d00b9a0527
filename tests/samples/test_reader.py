"""Readers and iterables: gone through again and again, in memory that does not grow."""

import tracemalloc

import numpy as np
import pytest
import torch

from fewbit.errors import CalibrationError
from fewbit.samples.reader import Replayed, batches_of_reader
from fewbit.samples.recorded import Recorded


class Reader:
    """What users of onnxruntime have: batches from a list, one after the other."""

    def __init__(self, batches):
        self.batches, self.place, self.given = batches, 0, 0

    def get_next(self):
        if self.place == len(self.batches):
            return None
        self.place += 1
        self.given += 1
        return self.batches[self.place - 1]


class Rewinding(Reader):
    def rewind(self):
        self.place = 0


def dicts(count, size=3):
    return [{"x": np.full((2, size), number, np.float32), "ids": np.asarray([number, 1])} for number in range(count)]


@pytest.mark.parametrize("kind", [Reader, Rewinding])
def test_batches_of_a_reader_can_be_had_in_any_order_and_again(kind):
    batches = batches_of_reader(kind(dicts(5)))
    assert len(batches) == 5
    for _ in range(2):
        assert [int(batch["ids"][0]) for batch in batches] == [0, 1, 2, 3, 4]
    assert [int(batches[place]["x"][0, 0]) for place in (3, 1, 4, -1, 0)] == [3, 1, 4, 4, 0]
    assert [int(batch["ids"][0]) for batch in batches[1:3]] == [1, 2]
    with pytest.raises(IndexError):
        batches[5]


def test_two_that_go_through_a_rewinding_reader_by_turns_get_the_same():
    batches = batches_of_reader(Rewinding(dicts(3)))
    pairs = [(int(a["ids"][0]), int(b["ids"][0])) for a in batches for b in batches]
    assert pairs == [(a, b) for a in range(3) for b in range(3)]


def test_a_reader_in_order_is_read_once_a_pass():
    reader = Rewinding(dicts(10))
    batches = Replayed(reader)
    list(batches)
    list(batches)
    assert reader.given == 30  # the first pass counts


def test_a_rewinding_reader_that_was_read_before_begins_again():
    reader = Rewinding(dicts(3))
    reader.get_next()
    assert len(batches_of_reader(reader)) == 3


def test_a_reader_that_shuffles_is_found_out():
    class Shuffling(Rewinding):
        def rewind(self):
            super().rewind()
            self.batches = self.batches[::-1]

    batches = Replayed(Shuffling(dicts(3)))
    with pytest.raises(
        CalibrationError, match=r"Shuffling gives other batches after rewind\(\), from number 0 on; give"
    ):
        batches[0]


def test_a_reader_that_gives_fewer_after_rewind_is_found_out():
    class Tiring(Rewinding):
        def rewind(self):
            super().rewind()
            self.batches = self.batches[1:]

    with pytest.raises(CalibrationError, match=r"Tiring gives other batches after rewind\(\), from number 2 on"):
        Replayed(Tiring([dicts(1)[0]] * 4))[2]


@pytest.mark.parametrize("kind", [Reader, Rewinding])
def test_a_reader_that_gives_no_dict_is_refused(kind):
    with pytest.raises(
        CalibrationError, match=r"get_next\(\) gave a ndarray; it must be a dict of arrays by input name"
    ):
        batches_of_reader(kind([np.zeros(3)]))


def test_recorded_batches_keep_their_form():
    tensor, own = torch.zeros(3), {"x": np.arange(3), "mask": None, "t": torch.ones(2)}
    found = Recorded(iter([np.arange(4), (np.arange(2), "text"), own, tensor, [1, 2]]), in_memory=8)
    assert found[0].tolist() == [0, 1, 2, 3]
    assert (found[1][0].tolist(), found[1][1]) == ([0, 1], "text")
    assert (found[2]["x"].tolist(), found[2]["mask"], found[2]["t"] is own["t"]) == ([0, 1, 2], None, True)
    assert found[3] is tensor
    assert found[4] == [1, 2]


def test_a_generator_may_fill_the_same_array_again():
    def filling():
        array = np.zeros(2)
        for number in range(3):
            array[:] = number
            yield array

    assert [int(array[0]) for array in Recorded(filling())] == [0, 1, 2]


@pytest.mark.parametrize("how", ["recorded", "replayed"])
def test_memory_does_not_grow_with_what_a_reader_gives(how):
    class Making:
        def __init__(self, count):
            self.count, self.place = count, 0

        def get_next(self):
            self.place += 1
            return {"x": np.full((1 << 14,), self.place, np.float32)} if self.place <= self.count else None

        def rewind(self):
            self.place = 0

    def peak(count):
        tracemalloc.start()
        reader = Making(count)
        batches = Replayed(reader) if how == "replayed" else Recorded(iter(reader.get_next, None), in_memory=1 << 18)
        assert sum(float(batch["x"][0]) for batch in batches) == count * (count + 1) / 2
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    few, many = peak(8), peak(512)  # 512 kB and 32 MB
    # What is kept of a batch beside the file: its place, or its checksum.
    assert many < few + 512 * 1000
