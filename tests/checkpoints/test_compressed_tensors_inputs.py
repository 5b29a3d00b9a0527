"""Rounded inputs in a quantized folder: what is written comes back to the bit, what has no place is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import fewbit as fb
from fewbit.checkpoints.compressed_tensors import CompressedTensors
from fewbit.errors import CheckpointError, PlanError
from fewbit.interfaces import Layer, QuantizedLayer
from fewbit.presets import PRESETS
from fewbit.schemes.notation import parse_input_scheme

DYNAMIC = ("int8", "int8 sym", "int8 tensor", "int8 g16", "int4", "int2 sym", "e4m3", "e4m3 tensor", "e4m3 g32",
           "mxfp4", "mxfp6", "mxfp8")  # fmt: skip
STATIC = ("int8 static", "int8 static sym", "int5 static", "e4m3 static", "int8 static percentile", "e4m3 static mse",
          "nvfp4 static")  # fmt: skip
LINEAR = Layer("0", "linear", (8, 64), "Linear")


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 8)).eval()


def batches():
    return list(torch.randn(4, 10, 64, generator=torch.Generator().manual_seed(1)))


def quantized(weight, given, **options):
    recipe = fb.Recipe([fb.Rule(kind="linear", weight=weight, input=given)])
    return fb.quantize(module(), recipe, calibration=batches() if "static" in given else None, **options)


def same_outputs(loaded, result):
    inputs = torch.randn(7, 5, 64)
    with torch.no_grad():
        return torch.equal(loaded.model(inputs), result.model(inputs))


@pytest.mark.parametrize("given", [*DYNAMIC, *STATIC])
@pytest.mark.parametrize("weight", ["int8", "int4 g16 asym", "e4m3"])
def test_what_is_loaded_computes_to_the_bit_what_was_saved(tmp_path, weight, given):
    result = quantized(weight, given, to="compressed-tensors")
    result.save(tmp_path / "out")
    assert same_outputs(fb.load(tmp_path / "out", into=module()), result)
    # The negative control: the rounding is seen in the outputs.
    without = fb.quantize(module(), fb.Recipe([fb.Rule(kind="linear", weight=weight)]), to="compressed-tensors")
    assert not same_outputs(without, result)


@pytest.mark.parametrize("preset", sorted({name for name, (_, given) in PRESETS.items() if given}))
def test_presets_that_round_inputs_come_back_with_their_plan(tmp_path, preset):
    result = fb.quantize(module(), preset, to="compressed-tensors", calibration=batches())
    result.save(tmp_path / "out")
    loaded = fb.load(tmp_path / "out", into=module())
    assert [row.input for row in loaded.plan.rows] == [row.input for row in result.plan.rows]
    assert [row.becomes for row in loaded.plan.rows] == [row.becomes for row in result.plan.rows]
    assert same_outputs(loaded, result)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_a_static_scale_is_used_as_it_is_stored(tmp_path, dtype):
    result = quantized("int8", "int8 static", to="compressed-tensors", dtype=dtype)
    result.save(tmp_path / "out")
    rounding = result.model[0].input.activation
    stored = fb.load(tmp_path / "out", into=module()).model[0].input.activation
    assert stored.scale.to(getattr(torch, dtype)).float() == rounding.scale == stored.scale
    assert stored.zero_point == rounding.zero_point


@pytest.mark.parametrize("given", ["int8", "int8 static", "e4m3 static", "nvfp4 static"])
def test_what_was_loaded_is_saved_again_as_the_same_bytes(tmp_path, given):
    quantized("int8", given, to="compressed-tensors").save(tmp_path / "first")
    fb.load(tmp_path / "first", into=module()).save(tmp_path / "second")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()


FORMS = {
    ("int8", "int8"): "int-quantized",
    ("int4 g16", "int8"): "int-quantized",
    ("int4 g16", "e4m3"): "pack-quantized",
    ("e4m3", "e4m3"): "float-quantized",
    ("e4m3", "int8"): "float-quantized",
    ("mxfp4", "mxfp4"): "mxfp4-pack-quantized",
    ("int4 g16", "mxfp6"): "pack-quantized",
    ("mxfp8", "mxfp8"): "mxfp8-quantized",
    ("e4m3", "mxfp8"): "float-quantized",
    ("nvfp4", "nvfp4 static"): "nvfp4-pack-quantized",
    ("int4 g16", "nvfp4 static"): "pack-quantized",
}


@pytest.mark.parametrize("case", FORMS, ids=str)
def test_the_layout_follows_weight_and_input(tmp_path, case):
    quantized(*case, to="compressed-tensors").save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert (config["format"], config["config_groups"]["group_0"]["format"]) == (FORMS[case], FORMS[case])


def test_layers_with_and_without_rounded_inputs_stand_in_groups_of_their_own(tmp_path):
    recipe = fb.Recipe([fb.Rule("0", weight="int8", input="int8 static"), fb.Rule("2", weight="int8")])
    result = fb.quantize(module(), recipe, to="compressed-tensors", calibration=batches())
    result.save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())["quantization_config"]
    assert config["format"] == "mixed-precision"
    groups = [(group["targets"], group["format"]) for group in config["config_groups"].values()]
    assert groups == [(["0"], "int-quantized"), (["2"], "pack-quantized")]
    assert same_outputs(fb.load(tmp_path / "out", into=module()), result)


@pytest.mark.parametrize("given", ["int8", "int8 static", "e4m3 static", "nvfp4 static"])
def test_the_plan_counts_the_bytes_of_ranges(tmp_path, given):
    result = quantized("int8", given, to="compressed-tensors")
    result.save(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    assert sum(array.nbytes for array in stored.values()) == result.plan.bytes_after
    assert ("0.input_scale" in stored) == (given in ("int8 static", "e4m3 static"))
    assert ("0.input_global_scale" in stored) == (given == "nvfp4 static")
    assert ("0.input_zero_point" in stored) == (given == "int8 static")


KNOWN = "use int2 to int8, e4m3, mxfp4, mxfp6, mxfp8 or 'nvfp4 static'"
REFUSED = {
    "uint8 static": f"no layout for the input 'uint8 tensor asym static'; {KNOWN}",
    "int16": f"no layout for the input 'int16 token asym'; {KNOWN}",
    "e5m2": f"no layout for the input 'e5m2 token'; {KNOWN}",
    "mxfp8e5m2": f"no layout for the input 'mxfp8e5m2'; {KNOWN}",
    "nvfp4": "a runtime has one fixed scale for those of all inputs, and 'nvfp4' finds one in each; "
    "use 'nvfp4 static', mxfp4, mxfp6, mxfp8, int2 to int8 or e4m3",
    "mxfp4 mse": "'mxfp4 mse' says 'mse'; leave that word out, or add 'static'",
    "int8 narrow sym": "and 'int8 narrow token sym' is narrow; leave out 'narrow'",
    "int8 static channel": "by tensor, token or group, not as 'int8 channel asym static' says; use one of them",
    "int8 percentile": "'int8 token asym percentile' says 'percentile'; leave that word out, or add 'static'",
}


@pytest.mark.parametrize("given", REFUSED)
def test_inputs_without_a_place_in_the_layout_are_a_problem_of_the_plan(tmp_path, given):
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int8", input=given)])
    problems = fb.plan(module(), recipe, to="compressed-tensors").problems
    assert len(problems) == 1
    assert problems[0].startswith("0 and 1 more: ")
    assert problems[0].endswith(REFUSED[given])
    assert fb.plan(module(), recipe).problems == ()
    with pytest.raises(PlanError, match=r"0: .*use|0: .*leave"):
        fb.quantize(module(), recipe, calibration=batches()).save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_rounded_outputs_are_refused_also_where_no_target_was_named(tmp_path):
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int8", output="int8")])
    with pytest.raises(PlanError, match="rounds no outputs, and here is 'int8 token asym'; leave out `output`"):
        fb.quantize(module(), recipe).save(tmp_path / "out")


def test_a_symmetric_dynamic_range_may_be_spelled_by_its_usual_word():
    usual = QuantizedLayer(LINEAR, fb.parse_scheme("int8"), parse_input_scheme("int8 sym absmax"))
    assert CompressedTensors().problem(usual) is None


def test_a_static_scale_that_the_type_does_not_hold_is_refused(tmp_path):
    recipe = fb.Recipe([fb.Rule("0", weight="int8", input="int8 static"), fb.keep("2")])
    small = [batch * 1e-5 for batch in batches()]  # a range of 1e-5 in 255 steps is subnormal in float16
    result = fb.quantize(module(), recipe, to="compressed-tensors", dtype="float16", calibration=small)
    with pytest.raises(CheckpointError, match=r"0: float16 does not hold the scale .* of its input exactly; quantize"):
        result.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_inspect_says_how_inputs_are_rounded(tmp_path, capsys):
    from fewbit.cli.application import main

    quantized("int8", "int8 static", to="compressed-tensors").save(tmp_path / "out")
    with pytest.raises(SystemExit) as leave:
        main(["inspect", str(tmp_path / "out"), "--json"])
    assert leave.value.code == 0
    rows = json.loads(capsys.readouterr().out)["tensors"]
    assert [row["form"] for row in rows if row["quantized"]] == ["int8 channel, input int8 tensor asym static"] * 2
    total = sum(array.nbytes for array in load_file(tmp_path / "out" / "model.safetensors").values())
    assert sum(row["nbytes"] for row in rows) == total


def test_a_folder_says_its_range_in_numbers_that_anyone_can_use(tmp_path):
    result = quantized("int8", "int8 static", to="compressed-tensors")
    result.save(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    scale, zero = stored["0.input_scale"], stored["0.input_zero_point"].astype(np.float32)
    x = torch.randn(50, 64).numpy()
    by_hand = (np.clip(np.round(x * (1 / scale)) + zero, -128, 127) - zero) * scale
    assert np.array_equal(result.model[0].input(torch.from_numpy(x)).numpy(), by_hand)


def test_the_nvfp4_preset_gets_the_fixed_scale_of_scales_that_the_layout_has_and_says_so():
    made = fb.plan(module(), "nvfp4", to="compressed-tensors")
    assert made.problems == ()
    assert [str(row.input) for row in made.rows] == ["nvfp4 static"] * 2
    assert any(
        "input 'nvfp4' -> 'nvfp4 static', the nearest that compressed-tensors has" in text for text in made.adaptations
    )
    assert [str(row.input) for row in fb.plan(module(), "nvfp4").rows] == ["nvfp4"] * 2


def test_the_fixed_scale_of_scales_stands_in_the_folder_as_its_reciprocal(tmp_path):
    result = quantized("int8", "nvfp4 static", to="compressed-tensors")
    result.save(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    largest = max(float(batch.abs().max()) for batch in batches())
    unit = result.model[0].input.activation.scale
    assert 1.0 / stored["0.input_global_scale"] == [unit]
    # The least power of two under which the largest scale, that of the largest number seen, is an e4m3 number.
    assert unit / 2 < largest / 6.0 / 448.0 <= unit


@pytest.mark.parametrize("number", [0.0, -1.0, float("nan"), float("inf")])
def test_a_scale_of_scales_that_is_none_is_refused(tmp_path, number):
    quantized("int8", "nvfp4 static", to="compressed-tensors").save(tmp_path / "out")
    stored = load_file(tmp_path / "out" / "model.safetensors")
    stored["0.input_global_scale"] = np.asarray([number], np.float32)
    save_file(stored, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=r"0: its input_global_scale is .* has no reciprocal as a float32"):
        fb.load(tmp_path / "out", into=module())


def test_what_other_writers_say_of_such_inputs_is_read(tmp_path):
    """compressed-tensors names an observer and a type of zero points; its unit is no power of two."""
    quantized("int8", "nvfp4 static", to="compressed-tensors").save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    given = config["quantization_config"]["config_groups"]["group_0"]["input_activations"]
    given |= {"observer": "static_minmax", "zp_dtype": "torch.float8_e4m3fn", "observer_kwargs": {}}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    stored = load_file(tmp_path / "out" / "model.safetensors")
    stored["0.input_global_scale"] = np.asarray([2688.0 / 3.7], np.float32)
    save_file(stored, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    loaded = fb.load(tmp_path / "out", into=module())
    assert str(loaded.plan.rows[0].input) == "nvfp4 static"
    loaded.save(tmp_path / "again")
    assert np.array_equal(
        load_file(tmp_path / "again" / "model.safetensors")["0.input_global_scale"], stored["0.input_global_scale"]
    )
