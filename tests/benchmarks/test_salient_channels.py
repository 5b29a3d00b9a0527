"""benchmarks/salient_channels.py puts back the columns that large inputs meet, and no others."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import fewbit as fb

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "salient_channels.py"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("salient_channels", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_columns_of_the_largest_inputs_are_floats_again_and_no_others(script):
    torch.manual_seed(0)
    reference = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 32, bias=False)).eval()
    batches = [torch.randn(32, 64) * torch.where(torch.arange(64) == 7, 20.0, 1.0) for _ in range(3)]
    recipe = fb.Recipe([fb.Rule("0", weight="int3 g32"), fb.keep(".*")])
    result = fb.quantize(copy.deepcopy(reference), recipe)
    before, rounded = result.model(batches[0]).detach(), result.model[0].qtensor.dequantize()
    share = script.with_salient_channels(result.model, reference, batches, 0.01)
    assert share == 1 / 64
    found, wanted = result.model[0].weight.detach(), reference[0].weight.detach()
    assert torch.equal(found[:, 7], wanted[:, 7])
    others = [column for column in range(64) if column != 7]
    assert torch.equal(found[:, others], rounded[:, others])
    with torch.no_grad():
        after, expected = result.model(batches[0]), reference(batches[0])
    assert (after - expected).norm() < 0.5 * (before - expected).norm()


def test_magnitudes_are_means_over_all_batches(script):
    model = nn.Sequential(nn.Linear(4, 2))
    batches = [torch.tensor([[1.0, -2.0, 0.0, 3.0]]), torch.tensor([[3.0, -2.0, 0.0, -3.0]])]
    assert script.magnitudes(model, ["0"], batches)["0"].tolist() == [2.0, 2.0, 0.0, 3.0]
