"""Runs of tokens that calibration and evaluation share."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.evaluation.overlap import RUN, overlap


def texts(seed, count=4, length=64, vocabulary=50_000):
    return list(np.random.default_rng(seed).integers(0, vocabulary, (count, 1, length)))


def test_the_same_text_overlaps_wholly_and_another_not_at_all():
    own = texts(0)
    assert overlap(own, own).share == 1.0
    assert overlap(own, texts(1)).share == 0.0
    assert overlap(own, texts(1)).runs == 4 * (64 - RUN + 1)


def test_one_sequence_of_four_is_a_quarter():
    own = texts(0)
    assert overlap([own[2]], own).share == 0.25


@given(st.integers(0, 56), st.integers(0, 64))
@settings(max_examples=30, deadline=None)
def test_it_counts_what_sets_of_runs_count(first, length):
    seen, asked = texts(0, 1, vocabulary=3)[0], texts(1, 1, vocabulary=3)[0]
    part = seen[:, first : first + length]
    known = {tuple(part[0, n : n + RUN]) for n in range(part.shape[1] - RUN + 1)}
    found = overlap([part], [asked])
    if not known:
        assert found is None
        return
    runs = [tuple(asked[0, n : n + RUN]) for n in range(asked.shape[1] - RUN + 1)]
    assert (found.runs, found.shared) == (len(runs), sum(run in known for run in runs))


@pytest.mark.parametrize(
    ("calibration", "evaluation"),
    [([], texts(0)), (texts(0), []), ([np.zeros((4, 8), np.float32)], texts(0)), ([np.zeros((1, 7), int)], texts(0))],
)
def test_what_is_no_text_overlaps_with_none(calibration, evaluation):
    assert overlap(calibration, evaluation) is None


def test_batches_may_be_dicts_and_tensors():
    import torch

    own = texts(0)
    assert overlap([{"input_ids": torch.from_numpy(one)} for one in own], own).share == 1.0
