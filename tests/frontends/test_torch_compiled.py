"""torch.compile of models with rounded inputs: one graph, the numbers of the model itself, the kernel inside of it."""

import copy

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.kernels.fbgemm import Fbgemm

needs_fbgemm = pytest.mark.skipif(Fbgemm().missing() is not None, reason="no FBGEMM on this processor")


def made(given, weight="int7 channel narrow"):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 8)).eval()
    x = torch.randn(16, 64)
    return fb.quantize(model, fb.Recipe([fb.Rule(".*", weight=weight, input=given)]), calibration=[x]), x


def compiled(model):
    torch._dynamo.reset()
    return torch.compile(model, backend="aot_eager", fullgraph=True, dynamic=False)


@needs_fbgemm
@pytest.mark.parametrize("ran_before", [True, False])
@pytest.mark.parametrize("given", ["int8 static", "int8 static sym", "int8 token", "int8 tensor"])
def test_a_model_with_rounded_inputs_compiles_to_one_graph_of_the_same_numbers(given, ran_before, monkeypatch):
    result, x = made(given)
    assert {layer.kernel for layer in result.report.layers} == {"fbgemm"}
    model = copy.deepcopy(result.model)  # which has no kernel ready
    calls = []
    apply = Fbgemm.apply
    monkeypatch.setattr(Fbgemm, "apply", lambda *given: (calls.append(1), apply(*given))[1])
    with torch.no_grad():
        expected = result.model(x)
        if ran_before:
            model(x)
        calls.clear()
        run = compiled(model)
        assert torch.equal(run(x), expected)
        assert torch.equal(run(2 * x), result.model(2 * x))
    assert len(calls) == 2 + 2 + 2  # two calls of two compiled layers, one of the model itself


def test_what_is_made_of_torch_operators_is_compiled_as_such():
    result, x = made("e4m3 static", "e4m3 channel")
    with torch.no_grad():
        expected = result.model(x)
        graphs = []

        def backend(graph, _):
            graphs.append(str(graph.code))
            return graph

        torch._dynamo.reset()
        assert torch.equal(torch.compile(result.model, backend=backend, fullgraph=True)(x), expected)
    assert "fewbit" not in graphs[0]


@needs_fbgemm
def test_gradients_flow_through_a_compiled_model():
    result, x = made("int8 static")
    found = []
    for run in (result.model, compiled(result.model)):
        given = x.clone().requires_grad_()
        run(given).sum().backward()
        found.append(given.grad)
    assert torch.equal(*found)
    assert float(found[0].abs().max()) > 0.0


@needs_fbgemm
def test_a_copy_does_not_run_the_layer_it_was_copied_from():
    result, x = made("int8 static")
    other = copy.deepcopy(result.model)
    with torch.no_grad():
        other[2].bias.add_(1.0)
        run = compiled(other)
        assert torch.equal(run(x), other(x))
        assert not torch.equal(run(x), result.model(x))
