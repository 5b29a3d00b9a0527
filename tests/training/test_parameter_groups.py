"""Groups of parameters for the optimizers of a training."""

import pytest
import torch
from torch import nn

import fewbit as fb


def prepared(batch):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    rule = fb.Rule(kind="linear", weight="int4 channel", input="int8 tensor static")
    return fb.prepare_qat(model, fb.Recipe([rule]), training=fb.Training(gradient="lsq"), batch=batch)


def test_every_parameter_is_in_one_group():
    model = prepared(torch.randn(16, 8))
    groups = fb.parameter_groups(model, 1e-3, weight_decay=0.1)
    found = [id(own) for group in groups for own in group["params"]]
    assert sorted(found) == sorted(id(own) for own in model.parameters())
    decayed = [own for group in groups if group["weight_decay"] for own in group["params"]]
    assert {tuple(own.shape) for own in decayed} == {(16, 8), (4, 16)}
    torch.optim.AdamW(groups)


def test_a_range_steps_in_proportion_to_itself():
    batch = torch.randn(16, 8)
    small, large = (fb.parameter_groups(prepared(batch * size), 1e-3, range_rate=0.5) for size in (1.0, 64.0))
    ratios = [b["lr"] / a["lr"] for a, b in zip(small, large, strict=True)]
    assert ratios.count(64.0) == 1  # of the input of the first layer; a bias stands before that of the second
    assert ratios.count(1.0) == 6
    assert {group["lr"] for group in small if group["lr"] == 1e-3}


def test_a_range_that_has_not_begun_is_an_error():
    with pytest.raises(fb.errors.CalibrationError, match="has no range yet; give prepare_qat a batch"):
        fb.parameter_groups(prepared(None), 1e-3)
