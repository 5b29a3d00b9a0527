"""AWQ folders hold what the table of the layout says, and read back."""

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import fewbit as fb
from fewbit.checkpoints.awq import Awq
from fewbit.errors import CheckpointError
from fewbit.formats.integer import Int
from fewbit.interfaces import Layer, Manifest, QuantizedLayer
from fewbit.qtensor import QTensor, scale_shape
from fewbit.schemes.granularity import PerGroup
from fewbit.schemes.scheme import Scheme

WEIGHTS = {"int4 g32": 32, "int4 g32 asym": 32, "int4 g16 asym": 16, "int4 g64": 64}


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 24), nn.Linear(24, 3))


def saved(tmp_path, weight):
    recipe = fb.Recipe([fb.Rule("0", weight=weight), fb.keep("1")])
    result = fb.quantize(module(), recipe, to="awq")
    return result, result.save(tmp_path / "out", to="awq")


@pytest.mark.parametrize("weight", WEIGHTS)
def test_the_file_holds_what_the_table_of_the_layout_says(oracle, tmp_path, weight):
    result, folder = saved(tmp_path, weight)
    tensors, config = oracle.read(folder)
    assert config == {
        "quant_method": "awq", "bits": 4, "group_size": WEIGHTS[weight], "zero_point": True, "version": "gemm",
        "modules_to_not_convert": ["1"],
    }  # fmt: skip
    expected = result.model[0].qtensor.dequantize().numpy()
    assert np.array_equal(oracle.awq_weight(tensors, "0", WEIGHTS[weight]), expected)
    # The negative control: the order of nibbles counts.
    tensors["0.qweight"] = tensors["0.qweight"].view(np.uint32) >> 4 | tensors["0.qweight"].view(np.uint32) << 28
    assert not np.array_equal(oracle.awq_weight(tensors, "0", WEIGHTS[weight]), expected)


@pytest.mark.parametrize("weight", WEIGHTS)
def test_what_is_read_back_runs_the_same_and_is_symmetric_where_it_was(tmp_path, weight):
    result, folder = saved(tmp_path, weight)
    loaded = fb.load(folder, into=module())
    inputs = torch.randn(4, 64)
    assert torch.equal(loaded.model(inputs), result.model(inputs))
    assert loaded.plan.rows[0].becomes == weight


@st.composite
def weights(draw):
    """A QTensor of any shape, codes, zero points and scales that the layout holds."""
    group, symmetric = draw(st.sampled_from([16, 32, 64])), draw(st.booleans())
    shape = 8 * draw(st.integers(1, 4)), 64 * draw(st.integers(1, 2))
    scheme = Scheme(format=Int(4), granularity=PerGroup(group), symmetric=symmetric, scale_type="float16")
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    scales = scale_shape(shape, scheme)
    zero = random.integers(-8, 7, scales, dtype=np.int8, endpoint=True)
    return QTensor(
        codes=random.integers(-8, 7, shape, dtype=np.int8, endpoint=True),
        scale=random.uniform(-2.0, 2.0, scales).astype(np.float16).astype(np.float32),
        zero_point=None if symmetric else np.where(zero == 0, 1, zero).astype(np.int8),
        scheme=scheme,
    )


@settings(max_examples=40)
@given(qtensor=weights())
def test_any_weight_of_the_grid_is_held_to_the_bit(oracle, qtensor):
    layer = QuantizedLayer(Layer("a", "linear", qtensor.shape, "Linear"), qtensor.scheme)
    manifest = Manifest(quantized=(layer,), kept=(), floats=(), storage_type="float16")
    with tempfile.TemporaryDirectory() as root:
        with Awq().open(Path(root) / "out", manifest) as writer:
            writer.put("a", qtensor)
            folder = writer.close()
        tensors, config = oracle.read(folder)
        assert np.array_equal(oracle.awq_weight(tensors, "a", config["group_size"]), qtensor.dequantize())
        back = dict(Awq().read(folder).tensors())["a"]
        for part in ("codes", "scale", "zero_point"):
            assert np.array_equal(getattr(back, part), getattr(qtensor, part))
        assert back.scheme == qtensor.scheme


def test_groups_of_several_sizes_are_refused_before_anything_is_written(tmp_path):
    recipe = fb.Recipe([fb.Rule("0", weight="int4 g32"), fb.Rule("1", weight="int4 g16")])
    result = fb.quantize(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 8)), recipe, to="awq")
    with pytest.raises(
        CheckpointError, match=r"an AWQ folder has one group size .* here are 32 of 0, 16 of 1; use one"
    ):
        result.save(tmp_path / "out", to="awq")
    assert list(tmp_path.iterdir()) == []
