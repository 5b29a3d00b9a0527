"""Latency: models take turns, and figures are those of one forward and of one token."""

import time
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fewbit.evaluation.latency import Latency, latencies, side_by_side


class Slow(nn.Module):
    """Takes its time for a sequence, and other time for a token behind a cache."""

    def __init__(self, prefill, token, *, cached=True):
        super().__init__()
        self.prefill, self.token = prefill, token
        if cached:
            self.config = SimpleNamespace(use_cache=True)

    def forward(self, tokens, past_key_values=None, use_cache=False):
        time.sleep(self.prefill if past_key_values is None else self.token)
        return SimpleNamespace(logits=torch.zeros(*tokens.shape, 5), past_key_values=(1,))


def test_prefill_and_decoding_are_told_apart():
    tokens = torch.zeros(1, 20, dtype=torch.long)
    slow, fast = latencies([Slow(0.04, 0.02), Slow(0.02, 0.005)], tokens)
    # A sleep ends late by what the machine is busy with, never early by more than a tick.
    assert 0.039 < slow.prefill < 0.08
    assert 0.019 < fast.prefill < 0.06
    assert 0.017 < slow.decode < 0.04
    assert 0.003 < fast.decode < 0.03
    assert slow.prefill_speed == pytest.approx(20 / slow.prefill)
    assert slow.decode_speed == pytest.approx(1 / slow.decode)


def test_a_model_without_cache_has_no_figure_of_decoding():
    found = latencies([Slow(0.0, 0.0, cached=False)], torch.zeros(1, 4, dtype=torch.long))
    assert found[0].decode is None
    assert found[0].decode_speed is None
    assert isinstance(found[0], Latency)


def test_runs_take_turns_after_one_that_does_not_count():
    seen = []
    side_by_side([lambda: seen.append("a"), lambda: seen.append("b")], rounds=2)
    assert seen == ["a", "b", "a", "b", "a", "b"]
