"""Recovery: a depthwise network with planted ranges, which one scale a tensor ruins, comes back without data."""

import copy

import numpy as np
import onnx
import pytest
import torch

import fewbit as fb
from fewbit.interfaces import frontend_of

RECOVERY = {
    "transforms": ["batchnorm", {"name": "equalization", "replace_relu6": True}, "high-bias-absorption"],
    "corrections": [{"name": "bias", "means": "batchnorm"}],
}


def planted(net, graph):
    """Channels are up to a hundred times as large, and what reads them as much smaller: the function is the same."""
    factors = 10 ** (2 * torch.rand(12, generator=torch.Generator().manual_seed(1)) - 0.5)
    with torch.no_grad():
        net.norm1.weight.mul_(factors)
        net.norm1.bias.mul_(factors)
        net.deep.weight.div_(factors[:, None, None, None])
    held = net.state_dict()
    for tensor in graph.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(held[tensor.name].numpy(), tensor.name))


def recipe(**further):
    rules = [fb.Rule(kind=kind, weight="int8 tensor", input="int8 tensor static") for kind in ("conv", "linear")]
    return fb.Recipe(rules, **further)


@pytest.mark.parametrize("frontend", ["torch", "onnx"])
def test_equalization_and_bias_correction_bring_back_what_planted_ranges_cost(depthwise_nets, tmp_path, frontend):
    net, graph, batches = depthwise_nets()
    with torch.no_grad():
        expected = torch.cat([net(batch) for batch in batches])
        planted(net, graph)
        torch.testing.assert_close(torch.cat([net(batch) for batch in batches]), expected, rtol=1e-4, atol=1e-5)
    onnx.save(graph, tmp_path / "net.onnx")
    ratios, agreement = [], []
    for further in ({"transforms": ["batchnorm"]}, RECOVERY):
        model = str(tmp_path / "net.onnx") if frontend == "onnx" else copy.deepcopy(net)
        given = [batch.numpy() for batch in batches] if frontend == "onnx" else batches
        result = fb.quantize(model, recipe(**further), calibration=given)
        run = frontend_of(frontend).run
        outputs = [run(result.model, batch) for batch in given]
        found = np.concatenate([own["y"] if frontend == "onnx" else own.numpy() for own in outputs])
        error = ((found - expected.numpy()) ** 2).sum() / (expected.numpy() ** 2).sum()
        # Offsets that all outputs have in common say nothing of the input.
        centred = found - expected.numpy().mean(0), expected.numpy() - expected.numpy().mean(0)
        ratios.append(-10 * np.log10(error))
        agreement.append((centred[0].argmax(1) == centred[1].argmax(1)).mean())
    assert ratios[1] > ratios[0] + 10
    assert agreement[1] > agreement[0] + 0.5
