"""ONNX models as sources: files and models in memory."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from fewbit.sources import open_source
from fewbit.sources.onnx import OnnxSource

TEXT = '({t}[n, 8] x) => ({t}[n, 4] y) {{ y = MatMul(x, "l.weight") }}'


@pytest.fixture
def model(onnx_model):
    return onnx_model(TEXT.format(t="float"), {"l.weight": (8, 4)})


def test_a_file_and_models_in_memory_are_opened(model, tmp_path):
    onnx.save(model, tmp_path / "m.onnx")
    for given, name in ((tmp_path / "m.onnx", str(tmp_path / "m.onnx")), (str(tmp_path / "m.onnx"), None),
                        (model, "main"), (ir.from_proto(model), "main")):  # fmt: skip
        source = open_source(given)
        assert isinstance(source, OnnxSource)
        assert source.framework == "onnx"
        assert source.name == (name or str(tmp_path / "m.onnx"))
        assert list(source.load().found) == list(source.skeleton().found) == ["l"]
        assert (source.configuration(), source.companions(), source.tokenizer()) == ({}, {}, None)


def test_each_load_is_a_model_of_its_own(model):
    source = open_source(ir.from_proto(model))
    first, second = source.load(), source.load()
    assert first.graph is not second.graph
    first.graph.graph.name = "edited"
    assert second.graph.graph.name == "main"


@pytest.mark.parametrize(
    ("name", "dtype", "stored"),
    [("float", np.float32, "float32"), ("float16", np.float16, "float16"), ("double", np.float64, "float32")],
)
def test_the_storage_type_is_that_of_most_constants(onnx_model, name, dtype, stored):
    constants = {"l.weight": np.ones((8, 4), dtype), "unused": np.ones(3, np.int64)}
    assert open_source(onnx_model(TEXT.format(t=name), constants)).storage_type == stored


def test_other_frameworks_have_other_front_ends():
    from torch import nn

    assert open_source(nn.Linear(2, 2)).framework == "torch"
