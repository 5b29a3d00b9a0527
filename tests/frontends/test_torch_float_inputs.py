"""What layers get in the float model, beside what they get behind quantized layers, is that of plain runs of both."""

import copy

import pytest
import torch
from torch import nn

from fewbit.frontends.torch.calls import run_batch
from fewbit.frontends.torch.float_inputs import FloatInputs
from fewbit.frontends.torch.frontend import TorchFrontend
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme

#: Float32 sums of a hundred products, as a share of the largest entry of the drift.
SUMS = 1e-4
COARSE = parse_scheme("int3 g16")
FRONTEND = TorchFrontend()

pytestmark = pytest.mark.usefixtures("one_thread")


def inputs_of(model, names, batches):
    """Return the inputs of layers in runs of the whole model, float64 (rows, width)."""
    seen, handles = {name: [] for name in names}, []
    for name in names:

        def enter(module, args, name=name):
            seen[name].append(args[0].detach().double().reshape(-1, args[0].shape[-1]))

        handles.append(model.get_submodule(name).register_forward_pre_hook(enter))
    for batch in batches:
        run_batch(model, batch)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(rows) for name, rows in seen.items() if rows}


def drifts(model, batches, check, *, sequential=True):
    layers = [layer for layer in FRONTEND.layers(model) if layer.kind == "linear"]
    wanted = {layer.name: ("second_moment", "input_drift") for layer in layers}
    for stage in FRONTEND.calibrate(model, layers, wanted, batches, sequential=sequential):
        for part in stage:
            check(part)
            for layer in part.layers:
                FRONTEND.replacement(model, layer, quantize(FRONTEND.weight(model, layer), COARSE)).install()


@pytest.mark.parametrize("architecture", ["Llama", "GPT2", "Bert"])
def test_the_drift_is_that_between_the_float_and_the_quantized_model(tiny, architecture):
    model, batches = tiny(architecture)
    floats, checked = copy.deepcopy(model), []

    def check(part):
        names = [layer.name for layer in part.layers if "input_drift" in part.statistics.get(layer.name, {})]
        behind, before = (inputs_of(own, names, batches) for own in (model, floats))
        for name in names:
            found = part.statistics[name]["input_drift"]
            expected = (before[name] - behind[name]).T @ behind[name] / len(behind[name])
            assert found.count == part.statistics[name]["second_moment"].count == len(behind[name])
            atol = SUMS * max(float(expected.abs().max()), 1e-3)
            torch.testing.assert_close(found.result().double(), expected, rtol=0, atol=atol)
            checked.append((name, float(expected.abs().max())))

    drifts(model, batches, check)
    assert len(checked) >= 12
    # Nothing has drifted in front of the first block, and everything behind it.
    assert checked[0][1] < 1e-6
    assert min(size for _, size in checked[6:]) > 1e-6  # of inputs that are small themselves


def test_it_is_measured_in_sequential_order_and_inside_of_blocks_only(tiny):
    model, batches = tiny("Llama")
    found = []
    drifts(model, batches, lambda part: found.extend(part.statistics.values()), sequential=False)
    assert found
    assert all(list(own) == ["second_moment"] for own in found)


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.once, self.twice, self.never = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, rows):
        return self.twice(self.twice(self.once(rows).relu_()))


def test_layers_that_a_call_does_not_reach_once_have_none():
    model = Twice()
    with FloatInputs(model, ["once", "twice", "never"]) as inputs:
        for seed in range(2):
            model(torch.randn(3, 8, generator=torch.Generator().manual_seed(seed)))
    assert list(inputs.by_layer(2)) == ["once"]
    assert inputs.by_layer(0) == {}
    model(torch.randn(3, 8))
    assert len(inputs.by_layer(2)["once"]) == 2  # it has stopped listening


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = (nn.Linear(8, 8) for _ in range(3))

    def forward(self, rows):
        both = self.one(rows) + self.two(rows)
        rows.zero_()
        return both + self.three(rows)


def test_what_several_layers_get_is_kept_once_and_as_it_was():
    model = Shared()
    with FloatInputs(model, ["one", "two"]) as inputs:
        model(torch.ones(3, 8))
    kept = inputs.by_layer(1)
    assert kept["one"][0] is kept["two"][0]
    assert torch.equal(kept["one"][0], torch.ones(3, 8))
