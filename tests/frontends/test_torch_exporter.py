"""torch's exporter behind its door: names, sizes, silence, and what is said where it fails."""

import logging
import warnings
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from torch import nn

from fewbit.errors import CheckpointError
from fewbit.frontends.torch.calls import Call
from fewbit.frontends.torch.exporter import export
from fewbit.onnx_graph.live import OnnxModel


class Tagger(nn.Module):
    """Token ids and one vector each in, several outputs; one tensor comes out twice, and one of the inputs."""

    def __init__(self):
        super().__init__()
        self.embed, self.same = nn.Embedding(50, 8), nn.Linear(8, 8)
        self.norm = nn.BatchNorm1d(8).requires_grad_(False)
        self.second = nn.Linear(8, 8)
        with torch.no_grad():
            self.second.weight.copy_(self.same.weight)

    def forward(self, ids, vector, unused=None, double=False):
        warnings.warn("a forward may warn", stacklevel=2)
        hidden = self.same(self.embed(ids)) + vector
        scores = self.norm(self.second(hidden).transpose(1, 2))
        return {"scores": 2 * scores if double else scores, "hidden": (hidden, hidden), "given": vector, "none": None}


_IDS, _VECTOR = torch.arange(6).reshape(1, 6), torch.ones(1, 6, 8)


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    module = Tagger().eval()
    batch = {"ids": _IDS, "vector": _VECTOR, "unused": torch.zeros(3), "double": True}
    return module, export(module, Call.of(batch))


def _run(model, **feeds):
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    arrays = {name: own.numpy() for name, own in feeds.items()}
    return dict(zip([own.name for own in session.get_outputs()], session.run(None, arrays), strict=True))


@pytest.mark.filterwarnings("ignore:a forward may warn")
@pytest.mark.parametrize(("batch", "length"), [(1, 6), (3, 4)])
def test_the_graph_computes_the_module_for_other_batches_and_lengths(exported, batch, length):
    module, model = exported
    ids = torch.randint(0, 50, (batch, length), generator=torch.Generator().manual_seed(1))
    vector = torch.randn(batch, length, 8, generator=torch.Generator().manual_seed(2))
    found = _run(model, ids=ids, vector=vector, unused=torch.zeros(2))
    expected = module(ids, vector, double=True)
    assert list(found) == ["scores", "hidden_0", "hidden_1", "given"]
    for name, own in {"scores": expected["scores"], "hidden_1": expected["hidden"][0], "given": vector}.items():
        np.testing.assert_allclose(found[name], own.detach(), rtol=1e-5, atol=1e-6)


def test_sizes_have_names_and_those_that_cannot_change_are_numbers(exported):
    shapes = {value.name: [str(dim) for dim in value.shape] for value in exported[1].graph.inputs}
    assert shapes["ids"] == ["batch", "ids_axis_1"]
    assert shapes["vector"][2] == "8"
    assert shapes["unused"] == ["unused_axis_0"]


def test_layers_keep_their_names_and_numbers_though_some_are_equal(exported):
    module, model = exported
    found = OnnxModel.of(model.clone(), Path("tagger")).found
    assert list(found) == ["embed", "same", "second"]
    for name, own in found.items():
        stored = own.arrangement.matrix(own.weight.const_value.numpy())
        np.testing.assert_array_equal(stored, module.get_submodule(name).weight.detach())


def test_nothing_of_the_source_is_left_in_the_graph(exported):
    text = str(ir.to_proto(exported[1]))
    assert ".py" not in text
    assert "stack_trace" not in text


def test_an_export_is_silent_and_leaves_switches_as_they_were(capfd, caplog, recwarn):
    torch.backends.mha.set_fastpath_enabled(True)
    level = logging.getLogger("torch.onnx").level
    export(nn.Sequential(nn.Conv2d(2, 2, 2, padding="same")).eval(), Call.of(torch.zeros(1, 2, 4, 4)))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert not recwarn.list
    assert torch.backends.mha.get_fastpath_enabled()
    assert logging.getLogger("torch.onnx").level == level


class Branching(nn.Module):
    def forward(self, x):
        return x if x.sum() > 0 else -x


def test_what_torch_cannot_export_is_an_error_with_the_reason(capfd):
    with pytest.raises(
        CheckpointError, match=r"torch cannot export Branching to ONNX: Could not guard .*; change what it names, or"
    ):
        export(Branching(), Call.of(torch.ones(2, 3)))
    assert capfd.readouterr() == ("", "")


def test_a_batch_that_does_not_fit_is_an_error_before_anything_is_exported():
    with pytest.raises(CheckpointError, match=r"Linear does not run on the example batch: mat1 and mat2 shapes"):
        export(nn.Linear(3, 2), Call.of(torch.ones(2, 4)))
