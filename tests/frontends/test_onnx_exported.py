"""A module that torch exports: the same layers under the same names, and the numbers that the torch front end gives."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb


class Block(nn.Module):
    """A convolution with BatchNorm, attention, and a residual MLP."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv1d(8, 32, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm1d(32)
        self.query, self.key, self.value = (nn.Linear(32, 32) for _ in range(3))
        self.up, self.down = nn.Linear(32, 64), nn.Linear(64, 32)

    def forward(self, x):
        x = self.norm(self.stem(x)).relu().transpose(1, 2)
        scores = (self.query(x) @ self.key(x).transpose(1, 2)) / 32**0.5
        x = x + scores.softmax(-1) @ self.value(x)
        return x + self.down(nn.functional.gelu(self.up(x)))


@pytest.fixture(scope="module")
def both():
    torch.manual_seed(0)
    module = Block().train()
    with torch.no_grad():
        for _ in range(8):
            module(torch.randn(16, 8, 10))
    module.eval()
    batch = torch.export.Dim("batch", min=2)
    exported = torch.onnx.export(
        module, (torch.randn(4, 8, 10),), dynamo=True, dynamic_shapes=({0: batch},), verbose=False, opset_version=18
    )
    return module, exported.model


@pytest.mark.filterwarnings("ignore")  # of the exporter
@pytest.mark.parametrize("recipe", ["w8a8", "w8a8-static", "w4a16", "fp8"])
def test_an_exported_module_is_quantized_as_the_module_itself(both, recipe):
    module, exported = both
    generator = torch.Generator().manual_seed(1)
    tensors = [torch.randn(4, 8, 10, generator=generator) for _ in range(3)]
    theirs = fb.quantize(copy.deepcopy(module), recipe, calibration=tensors, evaluation=tensors)
    ours = fb.quantize(exported, recipe, calibration=tensors, evaluation=tensors)
    # The exporter folds the norm itself, and records its module at the convolution.
    expected = {layer.name.replace("stem", "norm"): layer.becomes for layer in theirs.report.layers}
    assert {layer.name: layer.becomes for layer in ours.report.layers} == expected
    # The same rounding of the same numbers, but for sums in another order, which now and then move a tie. The blocks of
    # the torch model are calibrated in another order than the stages of the graph.
    assert ours.report.output_sqnr == pytest.approx(theirs.report.output_sqnr, abs=1.0)
    if recipe != "w4a16":
        with torch.no_grad():
            expected = theirs.model(tensors[0]).numpy()
        [found] = ours.run(tensors[0]).values()
        step = np.abs(expected).max() / 127
        assert np.sqrt(np.mean((found - expected) ** 2)) < step
