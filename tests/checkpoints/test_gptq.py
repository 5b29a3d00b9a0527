"""GPTQ folders hold what the table of the layout says, whatever the widths, bits and zero points, and read back."""

import json
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from torch import nn

import fewbit as fb
from fewbit.checkpoints.gptq import Gptq
from fewbit.checkpoints.words import codes_of_whole_words as unit
from fewbit.errors import PlanError
from fewbit.formats.integer import Int
from fewbit.interfaces import Layer, Manifest, QuantizedLayer
from fewbit.qtensor import QTensor, scale_shape
from fewbit.schemes.granularity import PerChannel, PerGroup
from fewbit.schemes.scheme import Scheme

ASYMMETRIC = ("int4 g32 asym", "int2 g32 asym", "int3 g32 asym", "int8 channel asym")
SYMMETRIC = ("int4 g32", "int4 channel", "int3 g32", "int2 g16", "int8 channel", "int8 g64")


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 3))


def saved(tmp_path, weight, model=None):
    recipe = fb.Recipe([fb.Rule("0", weight=weight), fb.keep("1")])
    result = fb.quantize(model or module(), recipe, to="gptq")
    return result, result.save(tmp_path / "out", to="gptq")


def all_positive():
    """A module whose weights have no level below 0, so that zero points are 0."""
    model = module()
    with torch.no_grad():
        model[0].weight.abs_()
    return model


@pytest.mark.parametrize("weight", [*SYMMETRIC, *ASYMMETRIC])
def test_the_file_holds_what_the_table_of_the_layout_says(oracle, tmp_path, weight):
    result, folder = saved(tmp_path, weight)
    tensors, config = oracle.read(folder)
    assert config["checkpoint_format"] == "gptq"
    assert config["sym"] == (weight in SYMMETRIC)
    expected = result.model[0].qtensor.dequantize().numpy()
    assert np.array_equal(oracle.gptq_weight(tensors, "0", config["bits"], v2=False), expected)
    assert np.array_equal(tensors["0.bias"], result.model[0].bias.detach().numpy())


@pytest.mark.parametrize("weight", ASYMMETRIC)
def test_a_zero_point_of_0_makes_the_folder_a_gptq_v2_one(oracle, tmp_path, weight):
    result, folder = saved(tmp_path, weight, all_positive())
    tensors, config = oracle.read(folder)
    assert config["checkpoint_format"] == "gptq_v2"
    expected = result.model[0].qtensor.dequantize().numpy()
    assert np.array_equal(oracle.gptq_weight(tensors, "0", config["bits"], v2=True), expected)
    # The negative control: the same bytes under the other word are another weight.
    assert not np.array_equal(oracle.gptq_weight(tensors, "0", config["bits"], v2=False), expected)


def test_symmetric_zero_points_are_the_words_that_everyone_else_writes(oracle, tmp_path):
    tensors, _ = oracle.read(saved(tmp_path, "int4 g32")[1])
    assert set(tensors["0.qzeros"].view(np.uint32).ravel().tolist()) == {0x77777777}
    assert tensors["0.g_idx"].tolist() == [i // 32 for i in range(64)]


@pytest.mark.parametrize("weight", [*SYMMETRIC, *ASYMMETRIC])
@pytest.mark.parametrize("make", [module, all_positive])
def test_what_is_read_back_runs_the_same(tmp_path, weight, make):
    result, folder = saved(tmp_path, weight, make())
    loaded = fb.load(folder, into=module())
    inputs = torch.randn(4, 64)
    assert torch.equal(loaded.model(inputs), result.model(inputs))
    assert loaded.plan.rows[0].becomes == result.plan.rows[0].becomes


def test_the_configuration_is_there_twice_and_says_nothing_of_the_machine(oracle, tmp_path):
    folder = saved(tmp_path, "int4 g32")[1]
    copy = json.loads((folder / "quantize_config.json").read_text())
    assert copy == oracle.read(folder)[1]
    assert copy.pop("meta")["quantizer"][0].startswith("fewbit")
    assert copy == {
        "quant_method": "gptq", "bits": 4, "group_size": 32, "sym": True, "desc_act": False, "static_groups": False,
        "lm_head": False, "checkpoint_format": "gptq", "pack_dtype": "int32", "dynamic": {"-:^1$": {}},
        "modules_in_block_to_quantize": [["0"]],
    }  # fmt: skip


def test_layers_of_several_forms_stand_in_dynamic_and_read_back(oracle, tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)), nn.Linear(64, 5))
    rules = [fb.keep("4"), fb.Rule("0", weight="int8 channel"), fb.Rule(".*", weight="int4 g32 asym")]
    result = fb.quantize(model, fb.Recipe(rules), to="gptq")
    folder = result.save(tmp_path / "out", to="gptq")
    _, config = oracle.read(folder)
    assert (config["bits"], config["group_size"], config["sym"]) == (4, 32, False)
    assert config["dynamic"] == {"-:^4$": {}, "+:^0$": {"bits": 8, "group_size": -1, "sym": True}}
    loaded = fb.load(folder, into=nn.Sequential(*(nn.Linear(64, 64) for _ in range(4)), nn.Linear(64, 5)))
    inputs = torch.randn(4, 64)
    assert torch.equal(loaded.model(inputs), result.model(inputs))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_scales_are_float16_whatever_the_floats_are(tmp_path, dtype):
    result = fb.quantize(module(), fb.Recipe([fb.Rule("0", weight="int4 g32"), fb.keep("1")]), to="gptq", dtype=dtype)
    folder = result.save(tmp_path / "out")
    header = (folder / "model.safetensors").read_bytes()[:2000]
    kinds = {name: entry["dtype"] for name, entry in json.loads(header[8 : header.index(b"}}") + 2]).items()
             if name != "__metadata__"}  # fmt: skip
    assert kinds["0.scales"] == "F16"
    assert kinds["1.weight"] == kinds["0.bias"] == {"float16": "F16", "bfloat16": "BF16"}[dtype]
    assert fb.load(folder, into=module()).plan.storage_type == dtype


@st.composite
def weights(draw):
    """A QTensor of any shape, codes, zero points and scales that the layout holds."""
    bits = draw(st.sampled_from([2, 3, 4, 8]))
    group = draw(st.sampled_from([None, 16, 32, 64]))
    out, width = unit(bits) * draw(st.integers(1, 3)), 64 * draw(st.integers(1, 2)) if group else unit(bits) * 3
    symmetric = draw(st.booleans())
    scheme = Scheme(
        format=Int(bits), granularity=PerGroup(group) if group else PerChannel(), symmetric=symmetric,
        scale_type="float16",
    )  # fmt: skip
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    shape = scale_shape((out, width), scheme)
    low, high = Int(bits).qmin, Int(bits).qmax
    lowest = low if draw(st.booleans()) else low + 1  # with and without zero points of 0
    scale = random.uniform(1e-3, 2.0, shape).astype(np.float16).astype(np.float32)
    scale *= random.choice([-1.0, 1.0], shape).astype(np.float32) if draw(st.booleans()) else np.float32(1)
    return QTensor(
        codes=random.integers(low, high, (out, width), dtype=np.int8, endpoint=True),
        scale=scale,
        zero_point=None if symmetric else random.integers(lowest, high, shape, dtype=np.int8, endpoint=True),
        scheme=scheme,
    )


@settings(max_examples=40, deadline=None)
@given(weights())
def test_any_weight_of_the_grid_is_held_to_the_bit(oracle, qtensor):
    layer = Layer("a", "linear", qtensor.shape, "Linear")
    manifest = Manifest(quantized=(QuantizedLayer(layer, qtensor.scheme),), kept=(), floats=(), storage_type="float16")
    with tempfile.TemporaryDirectory() as root:
        folder = Path(root) / "out"
        with Gptq().open(folder, manifest) as writer:
            writer.put("a", qtensor)
            writer.close()
        tensors, config = oracle.read(folder)
        v2 = config["checkpoint_format"] == "gptq_v2"
        zero = qtensor.zero_point
        assert v2 == (zero is not None and bool((zero == qtensor.scheme.format.qmin).any()))
        assert np.array_equal(oracle.gptq_weight(tensors, "a", qtensor.scheme.format.bits, v2=v2), qtensor.dequantize())
        back = dict(Gptq().read(folder).tensors())["a"]
        for part in ("codes", "scale", "zero_point"):
            assert np.array_equal(getattr(back, part), getattr(qtensor, part))
        assert back.scheme == qtensor.scheme


# Act-order: the index of others


def scattered(oracle, folder, order, *, desc_act=True):
    """Give the columns of a folder's layer to groups in another order, as act-order does; return what it then means."""
    tensors, config = oracle.read(folder)
    tensors = {name: np.array(array) for name, array in tensors.items()}
    tensors["0.g_idx"] = np.asarray(order, np.int32)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    configuration = json.loads((folder / "config.json").read_text())
    configuration["quantization_config"]["desc_act"] = desc_act
    (folder / "config.json").write_text(json.dumps(configuration))
    return oracle.gptq_weight(tensors, "0", config["bits"], v2=config["checkpoint_format"] == "gptq_v2")


@pytest.mark.parametrize("weight", ["int4 g16", "int4 g16 asym", "int3 g16 asym"])
@pytest.mark.parametrize("run", [1, 4])
def test_columns_that_share_scales_in_any_order_mean_what_their_index_says(oracle, tmp_path, weight, run):
    folder = saved(tmp_path, weight)[1]
    order = np.repeat(np.random.default_rng(0).permutation(np.arange(64 // run) * run // 16), run)
    expected = scattered(oracle, folder, order)
    loaded = fb.load(folder, into=module())
    assert loaded.plan.rows[0].becomes == weight.replace("g16", f"g{run}")
    assert np.array_equal(loaded.model[0].qtensor.dequantize().numpy(), expected)
    assert {name: str(own) for name, own in Gptq().read(folder).scattered.items()} == {"0": weight}


def test_such_columns_are_refused_for_a_file_that_has_neighbours_only(oracle, tmp_path):
    folder = saved(tmp_path, "int4 g16")[1]
    scattered(oracle, folder, np.tile(np.arange(4), 16))
    loaded = fb.load(folder, into=module())
    with pytest.raises(PlanError, match=r"runtimes load GPTQ weights by channel, g16, .* not 'int4 g1'"):
        loaded.save(tmp_path / "again", to="gptq")


def test_an_index_that_desc_act_denies_is_refused(oracle, tmp_path):
    folder = saved(tmp_path, "int4 g16")[1]
    scattered(oracle, folder, np.tile(np.arange(4), 16), desc_act=False)
    with pytest.raises(fb.FewbitError, match=r"0: g_idx does not count the groups in the order of the columns"):
        fb.load(folder, into=module())


def test_a_file_without_an_index_is_one_of_neighbours(tmp_path):
    result, folder = saved(tmp_path, "int4 g16")
    tensors = load_file(folder / "model.safetensors")
    del tensors["0.g_idx"]
    save_file(tensors, folder / "model.safetensors")
    expected = result.model[0].qtensor.dequantize()
    assert torch.equal(fb.load(folder, into=module()).model[0].qtensor.dequantize(), expected)


def test_scales_that_float16_does_not_hold_are_refused_with_their_layer(tmp_path):
    model = module()
    with torch.no_grad():
        model[0].weight.mul_(1e-6)
    with pytest.raises(
        fb.FewbitError, match=r"0: float16 does not hold 64 of 64 scales exactly \(the least is 1\.\d+e-08"
    ):
        saved(tmp_path, "int4 g32", model)
    assert list(tmp_path.iterdir()) == []
