"""Calls cut short: one sample and 64 tokens where the model takes that, the whole call where it does not."""

import pytest
import torch
from torch import nn

from fewbit.frontends.torch.calls import Call, shapes
from fewbit.frontends.torch.short_call import shortened


class Tokens(nn.Module):
    def __init__(self, length=None):
        super().__init__()
        self.embedding = nn.Embedding(50, 8)
        self.positions = None if length is None else nn.Parameter(torch.randn(length, 8))

    def forward(self, ids, mask=None):
        found = self.embedding(ids)
        found = found if self.positions is None else found + self.positions
        return found if mask is None else found * mask[..., None]


IDS = torch.arange(300).reshape(3, 100) % 50


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (IDS, ((1, 64),)),
        ((IDS, torch.ones(3, 100, dtype=torch.int64)), ((1, 64), (1, 64))),
        ({"ids": IDS, "mask": IDS > 3}, ((1, 64), (1, 64))),
        (IDS[:, :20], ((1, 20),)),
    ],
)
def test_one_sample_and_few_tokens_stay(batch, expected):
    short = shortened(Tokens(), Call.of(batch))
    assert shapes([short.args, dict(short.kwargs)]) == expected
    assert torch.equal(next(iter(short.arguments().values())), IDS[:1, : expected[0][1]])


def test_a_model_of_fixed_length_gets_all_of_it():
    call = Call.of(IDS)
    assert shortened(Tokens(length=100), call) is call


def test_of_numbers_only_the_samples_are_cut():
    assert shapes(shortened(nn.Linear(100, 2), Call.of(torch.randn(3, 100))).args) == ((1, 100),)
    assert shapes(shortened(nn.Conv2d(4, 2, 3), Call.of(torch.randn(3, 4, 80, 80))).args) == ((1, 4, 80, 80),)


def test_arguments_of_different_lengths_are_left_alone():
    call = Call.of((IDS, torch.ones(100)))
    assert shortened(Tokens(), call) is call


@pytest.mark.parametrize("batch", [IDS, (IDS, IDS), {"ids": IDS}])
def test_a_call_is_a_batch_again(batch):
    assert Call.of(Call.of(batch).batch()) == Call.of(batch)
