"""The first of some data."""

import numpy as np
import torch

from fewbit.allocation.few_batches import few_batches


def test_token_ids_are_cut_to_as_many_tokens():
    batches = [torch.zeros(1, 512, dtype=torch.int64) for _ in range(3)]
    taken, size = few_batches(batches)
    assert [tuple(own.shape) for own in taken] == [(1, 256)]
    assert size == "256 tokens"
    taken, size = few_batches([{"input_ids": own} for own in batches], tokens=700)
    assert [tuple(own["input_ids"].shape) for own in taken] == [(1, 512), (1, 188)]
    assert size == "700 tokens"


def test_several_short_sequences_are_taken_until_there_are_enough():
    taken, size = few_batches([torch.zeros(4, 30, dtype=torch.int64)] * 9, tokens=256)
    assert [tuple(own.shape) for own in taken] == [(4, 30), (4, 30), (1, 16)]
    assert size == "256 tokens"


def test_other_data_are_taken_by_samples():
    taken, size = few_batches([np.zeros((24, 3, 8, 8), np.float32)] * 9)
    assert len(taken) == 3
    assert size == "72 samples"


def test_a_batch_with_more_than_token_ids_is_left_whole():
    batch = {"input_ids": torch.zeros(2, 300, dtype=torch.int64), "attention_mask": torch.ones(2, 300)}
    taken, size = few_batches([batch] * 3)
    assert taken == [batch]
    assert size == "600 tokens"
