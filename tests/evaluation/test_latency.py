"""Latency: models take turns, and figures are those of one forward and of one token."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fewbit.evaluation.latency import latencies, side_by_side


@pytest.fixture
def clock(monkeypatch):
    """A clock that only the models of these tests move."""
    held = SimpleNamespace(now=0.0)
    monkeypatch.setattr("fewbit.evaluation.latency.time.perf_counter", lambda: held.now)
    return held


class Slow(nn.Module):
    """Takes its time for a sequence, and other time for a token behind a cache."""

    def __init__(self, clock, prefill, token, *, cached=True):
        super().__init__()
        self.clock, self.prefill, self.token = clock, prefill, token
        if cached:
            self.config = SimpleNamespace(use_cache=True)

    def forward(self, tokens, past_key_values=None, use_cache=False):
        self.clock.now += self.prefill if past_key_values is None else self.token
        return SimpleNamespace(logits=torch.zeros(*tokens.shape, 5), past_key_values=(1,))


def test_prefill_and_decoding_are_told_apart(clock):
    # Powers of two, so that sums and differences of times are exact.
    slow, fast = latencies([Slow(clock, 4.0, 0.5), Slow(clock, 2.0, 0.125)], torch.zeros(1, 20, dtype=torch.long))
    assert (slow.prefill, slow.decode, slow.prefill_speed, slow.decode_speed) == (4.0, 0.5, 5.0, 2.0)
    assert (fast.prefill, fast.decode, fast.prefill_speed, fast.decode_speed) == (2.0, 0.125, 10.0, 8.0)


def test_a_model_without_cache_has_no_figure_of_decoding(clock):
    found = latencies([Slow(clock, 1.0, 1.0, cached=False)], torch.zeros(1, 4, dtype=torch.long))
    assert (found[0].prefill, found[0].decode, found[0].decode_speed) == (1.0, None, None)


def test_runs_take_turns_after_one_that_does_not_count(clock):
    seen = []

    def run(name, seconds):
        seen.append(name)
        # The first takes a hundred times as long, as one that compiles does; the median of the others is even.
        clock.now += seconds * (100 if seen.count(name) == 1 else 1)

    assert side_by_side([lambda: run("a", 1.0), lambda: run("b", 2.0)], rounds=2) == [1.0, 2.0]
    assert seen == ["a", "b", "a", "b", "a", "b"]
