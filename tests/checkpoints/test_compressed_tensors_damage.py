"""Quantized folders whose parts contradict one another: each is an error of `fewbit.load` with layer and value."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import fewbit as fb
from fewbit.errors import CheckpointError, FewbitError, NotYetError
from fewbit.schemes.notation import input_scheme_to_text, parse_input_scheme

SCHEMES = {
    "asym": "int4 g32 asym", "sym": "int4 g32", "tensor": "int3 tensor asym", "float": "e4m3", "byte": "int8",
    "token": "int4 g32", "static": "int8 asym", "static sym": "int4 g32",
}  # fmt: skip
#: Schemes of the inputs; the others stay float.
INPUTS = {"token": "int8", "static": "int4 static", "static sym": "e4m3 static"}


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 3))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder for each scheme: layer `0` quantized, layer `1` float; tests must not change them."""
    root = tmp_path_factory.mktemp("made")
    for name, scheme in SCHEMES.items():
        recipe = fb.Recipe([fb.Rule("0", weight=scheme, input=INPUTS.get(name)), fb.keep("1")])
        seen = [torch.randn(20, 64)] if "static" in name else None
        fb.quantize(module(), recipe, to="compressed-tensors", calibration=seen).save(root / name)
    return root


@pytest.fixture
def broken(made, tmp_path):
    """Copy the folder of a scheme with some tensors or some of its configuration changed."""

    def change(scheme, *, tensors=None, config=None):
        arrays = load_file(made / scheme / "model.safetensors") if scheme != "float" else None
        configuration = json.loads((made / scheme / "config.json").read_text())
        if tensors is not None:
            tensors(arrays)
        if config is not None:
            config(configuration["quantization_config"])
        (tmp_path / "config.json").write_text(json.dumps(configuration))
        if arrays is None:
            (tmp_path / "model.safetensors").write_bytes((made / scheme / "model.safetensors").read_bytes())
        else:
            save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    return change


def refused(folder, kind, message):
    """Load into a module of one's own: the error is of that kind and text, and the module stays as it was."""
    model = module()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FewbitError, match=re.escape(message)) as caught:
        fb.load(folder, into=model)
    assert type(caught.value) is kind
    after = model.state_dict()
    assert [name for name in before if not torch.equal(after[name], before[name])] == []
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_not_changed_is_read(broken, made, scheme):
    folder = broken(scheme)
    inputs = torch.randn(4, 64)
    loaded = fb.load(folder, into=module())
    spelled = f", input {input_scheme_to_text(parse_input_scheme(INPUTS[scheme]))}" if scheme in INPUTS else ""
    assert [row.becomes for row in loaded.plan.rows] == [f"{fb.parse_scheme(SCHEMES[scheme])}{spelled}", "float"]
    assert torch.equal(loaded.model(inputs), fb.load(made / scheme, into=module()).model(inputs))


def put(name, value):
    def change(arrays):
        arrays[name] = value(arrays[name]) if callable(value) else value

    return change


def drop(*names):
    def change(arrays):
        for name in names:
            del arrays[name]

    return change


def first(number):
    def change(array):
        array = array.copy()
        array.reshape(-1)[0] = number
        return array

    return change


TENSORS = {
    "scales of another shape": (
        "sym", put("0.weight_scale", lambda a: a[:, :1].copy()),
        "0: weight_scale is float32[8, 1]; a weight of [8, 64] under int4 g32 has float32[8, 2]"),
    "scales turned over": (
        "sym", put("0.weight_scale", lambda a: np.ascontiguousarray(a.T)), "0: weight_scale is float32[2, 8]"),
    "scales of whole numbers": (
        "sym", put("0.weight_scale", lambda a: a.astype(np.int32)),
        "0: scale type 'int32' is none of float16, bfloat16, float32"),
    "scales in double precision": (
        "sym", put("0.weight_scale", lambda a: a.astype(np.float64)), "0: scale type 'float64' is none of"),
    "codes too short": (
        "sym", put("0.weight_packed", lambda a: a[:, :7].copy()),
        "0: weight_packed is int32[8, 7]; a weight of [8, 64] under int4 g32 has int32[8, 8]"),
    "a row of codes too few": (
        "sym", put("0.weight_packed", lambda a: a[:7].copy()), "0: weight_packed is int32[7, 8]; a weight of [8, 64]"),
    "codes of another type": (
        "sym", put("0.weight_packed", lambda a: a.view(np.uint8)), "0: weight_packed is uint8[8, 32]"),
    "a shape of 2^40": (
        "sym", put("0.weight_shape", np.asarray([2**40, 2**40])), f"a weight of [{2**40}, {2**40}] under int4 g32 has"),
    "a shape of zero": (
        "sym", put("0.weight_shape", np.asarray([0, 64])), "0: weight_shape is [0, 64], which is not the shape of a"),
    "a negative shape": ("sym", put("0.weight_shape", np.asarray([-8, -64])), "0: weight_shape is [-8, -64]"),
    "a shape of three": ("sym", put("0.weight_shape", np.asarray([8, 64, 1])), "0: weight_shape is [8, 64, 1]"),
    "a shape of floats": ("sym", put("0.weight_shape", np.asarray([8.0, 64.0])), "0: weight_shape is [8.0, 64.0]"),
    "a shape of the other order": (
        "sym", put("0.weight_shape", np.asarray([64, 8])), "a weight of [64, 8] under int4 g32 has int32[64, 1]"),
    "a scale that is NaN": (
        "sym", put("0.weight_scale", first(np.nan)), "0: 1 of 16 scales are NaN, infinite or negative"),
    "a scale that is infinite": ("asym", put("0.weight_scale", first(np.inf)), "0: 1 of 16 scales are NaN, infinite"),
    "a negative scale": ("byte", put("0.weight_scale", first(-0.5)), "0: 1 of 8 scales are NaN, infinite or negative"),
    "a zero point out of range": (
        "tensor", put("0.weight_zero_point", np.asarray([7], np.int8)),
        "0: its zero points reach from 7 to 7; those of int3 lie from -4 to 3"),
    "unpacked zero points out of range": (
        "asym", put("0.weight_zero_point", np.full((8, 2), -9, np.int8)),
        "0: its zero points reach from -9 to -9; those of int4 lie from -8 to 7"),
    "zero points of another shape": (
        "asym", put("0.weight_zero_point", lambda a: np.tile(a, (2, 1))),
        "0: weight_zero_point is int32[2, 2]; a weight of [8, 64] under int4 g32 asym has int32[1, 2]"),
    "zero points of floats": (
        "asym", put("0.weight_zero_point", np.zeros((8, 2), np.float32)), "0: weight_zero_point is float32[8, 2]"),
    "zero points that a symmetric scheme has not": (
        "sym", put("0.weight_zero_point", np.zeros((1, 2), np.int32)),
        "0: it holds weight_zero_point, which has no meaning under int4 g32"),
    "float weights beside codes": (
        "sym", put("0.weight", np.zeros((8, 64), np.float32)), "0: it holds weight, which has no meaning under int4"),
    "no codes": ("sym", drop("0.weight_packed"), "0.weight_packed is missing; int4 g32 needs it"),
    "no shape": ("sym", drop("0.weight_shape"), "0.weight_shape is missing; int4 g32 needs it"),
    "no zero points": ("asym", drop("0.weight_zero_point"), "0.weight_zero_point is missing; int4 g32 asym needs it"),
    "no scales": (
        "asym", drop("0.weight_scale"),
        "is part of a quantized weight, but 0.weight_scale is missing"),
    "no bias": ("sym", drop("0.bias"), "lacks 0.bias; the folder is incomplete"),
    "a bias too long": ("sym", put("0.bias", np.zeros(9, np.float32)), "holds 0.bias [9]; the model has [8]"),
    "a tensor of no layer": (
        "sym", put("2.weight", np.zeros(3, np.float32)), "holds 2.weight [3]; the model has no such tensor"),
    "bytes that are no codes": (
        "token", put("0.weight", lambda a: np.full_like(a, 9)), "0: its codes reach from 9 to 9; those of int4 lie"),
    "bytes of another type": (
        "token", put("0.weight", lambda a: a.view(np.uint8)), "0: weight is uint8[8, 64]; a weight of [8, 64] under"),
    "words beside bytes": (
        "token", put("0.weight_packed", np.zeros((8, 8), np.int32)), "0: it holds weight_packed, which has no meaning"),
    "no bytes": ("token", drop("0.weight"), "0.weight is missing; int4 g32 needs it"),
    "zero points in words beside bytes": (
        "static", put("0.weight_zero_point", np.zeros((1, 8), np.int32)), "0: weight_zero_point is int32[1, 8]"),
    "a range for inputs that have their own": (
        "token", put("0.input_scale", np.ones(1, np.float32)),
        "0.input_scale has no meaning beside the input 'int8 token asym' of quantization_config"),
    "a range for inputs that stay float": (
        "sym", put("0.input_scale", np.ones(1, np.float32)), "0.input_scale has no meaning beside the input 'float'"),
    "no range of the input": (
        "static", drop("0.input_scale"), "0.input_scale is missing; the input 'int4 tensor asym static' needs it"),
    "no zero point of the input": ("static", drop("0.input_zero_point"), "0.input_zero_point is missing; the input"),
    "a zero point of a symmetric input": (
        "static sym", put("0.input_zero_point", np.zeros(1, np.int8)), "0.input_zero_point has no meaning beside the"),
    "a range for each channel": (
        "static", put("0.input_scale", np.ones(64, np.float32)),
        "0: input_scale is float32[64]; the input 'int4 tensor asym static' has float32[1]"),
    "an input scale of whole numbers": (
        "static", put("0.input_scale", np.ones(1, np.int8)), "0: its input: scale type 'int8' is none of float16"),
    "an input scale of 0": (
        "static", put("0.input_scale", np.zeros(1, np.float32)), "0: its input_scale is 0, not a positive number"),
    "an input scale that is NaN": ("static sym", put("0.input_scale", first(np.nan)), "0: its input_scale is nan"),
    "an infinite input scale": ("static", put("0.input_scale", first(np.inf)), "0: its input_scale is inf"),
    "a negative input scale": ("static", put("0.input_scale", first(-1.0)), "0: its input_scale is -1"),
    "a scale without reciprocal": ("static", put("0.input_scale", first(1e-40)), "0: its input_scale is 1e-40"),
    "a zero point of the input out of range": (
        "static", put("0.input_zero_point", np.asarray([8], np.int8)),
        "0: zero points of its input reach from 8 to 8; those of int4 lie from -8 to 7"),
    "a zero point of the input of floats": (
        "static", put("0.input_zero_point", np.zeros(1, np.float32)), "0: input_zero_point is float32[1]; the input"),
    "order of columns by activation": (
        "sym", put("0.weight_g_idx", np.zeros(64, np.int32)), "holds 0.weight_g_idx [64]; the model has no such"),
}  # fmt: skip


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(broken, case):
    scheme, change, message = TENSORS[case]
    refused(broken(scheme, tensors=change), CheckpointError, message)


def test_zero_points_that_another_writer_left_unpacked_are_read(broken, made):
    expected = fb.load(made / "asym", into=module()).model.get_submodule("0").qtensor
    zero = expected.zero_point.numpy()
    folder = broken("asym", tensors=put("0.weight_zero_point", zero.astype(np.int8)))
    found = fb.load(folder, into=module()).model.get_submodule("0").qtensor
    assert torch.equal(found.dequantize(), expected.dequantize())


def test_a_nan_among_float_codes_is_refused(broken):
    folder = broken("float")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    begin = json.loads(content[8 : 8 + length])["0.weight"]["data_offsets"][0]
    content[8 + length + begin + 5] = 0xFF
    path.write_bytes(content)
    refused(folder, CheckpointError, "0: 1 of 512 weights are NaN; the file is damaged")


@pytest.mark.parametrize("damaged", ["0.weight_scale", "1.weight_scale", "1.bias"])
def test_a_module_of_ones_own_stays_whole_when_a_later_part_is_damaged(tmp_path, damaged):
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int8 channel")])
    fb.quantize(module(), recipe, to="compressed-tensors").save(tmp_path / "out")
    arrays = load_file(tmp_path / "out" / "model.safetensors")
    arrays[damaged] = first(np.nan)(arrays[damaged]) if damaged.endswith("scale") else np.zeros(9, np.float32)
    save_file(arrays, tmp_path / "out" / "model.safetensors")
    message = "scales are NaN" if damaged.endswith("scale") else "holds 1.bias [9]; the model has [3]"
    refused(tmp_path / "out", CheckpointError, message)


def group(**values):
    def change(config):
        config["config_groups"]["group_0"] |= values

    return change


def weights(**values):
    def change(config):
        config["config_groups"]["group_0"]["weights"] |= values

    return change


def inputs(**values):
    """Round the input by token, but for what is given."""
    entry = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "token", "group_size": None, "dynamic": True}
    return group(input_activations=entry | values)


def top(**values):
    def change(config):
        config.update(values)

    return change


CONFIGURATIONS = {
    "no groups": (top(config_groups={}), CheckpointError, "quantization_config has no config_groups"),
    "groups that are a list": (top(config_groups=[1]), CheckpointError, "quantization_config has no config_groups"),
    "a group that is text": (
        top(config_groups={"g": "int4"}), CheckpointError, "config group 'g' is no object but 'int4'"),
    "targets that are text": (
        group(targets="Linear"), CheckpointError, "targets of config group 'group_0' is not a list of names: 'Linear'"),
    "targets of numbers": (group(targets=[0]), CheckpointError, "is not a list of names: [0]"),
    "no targets": (group(targets=[]), CheckpointError, "0 has a weight_scale, but no config group targets it"),
    "targets that miss": (
        group(targets=["1"]), CheckpointError, "0 has a weight_scale, but no config group targets it"),
    "a pattern that is none": (
        group(targets=["re:("]), CheckpointError, "holds a pattern that is no regular expression: missing )"),
    "a pattern that repeats without end": (
        group(targets=["re:a{99999999999999}"]), CheckpointError, "holds a pattern that is no regular expression"),
    "weights that are a list": (
        group(weights=[4]), CheckpointError, "weights of config group 'group_0' are no object but [4]"),
    "a layout of later versions": (
        group(format="marlin-24"), NotYetError, "config group 'group_0' has the format 'marlin-24'; the formats that"),
    "a layout that is a number": (group(format=7), NotYetError, "config group 'group_0' has the format 7"),
    "a layout of other weights": (
        group(format="naive-quantized"), CheckpointError,
        "config group 'group_0' contradicts itself: naive-quantized holds no weights of type 'int'"),
    "float weights in a layout for integers": (
        weights(type="float", num_bits=8), CheckpointError, "pack-quantized holds no weights of type 'float'"),
    "another number of bits": (
        weights(num_bits=8), CheckpointError, "0: weight_packed is int32[8, 8]; a weight of [8, 64] under int8 g32"),
    "bits that are text": (weights(num_bits="4"), NotYetError, "0: weights of '4'-bit 'int' by 'group'"),
    "bits that are true": (weights(num_bits=True), NotYetError, "0: weights of True-bit 'int' by 'group'"),
    "nine bits": (weights(num_bits=9), NotYetError, "0: weights of 9-bit 'int' by 'group'"),
    "symmetric one bit": (weights(num_bits=1), CheckpointError, "0: int1 symmetric has the levels -1 and 0"),
    "another group size": (
        weights(group_size=16), CheckpointError, "0: weight_scale is float32[8, 2]; a weight of [8, 64]"),
    "group size zero": (weights(group_size=0), NotYetError, "by 'group' (group size 0) are not read"),
    "a group size that is text": (weights(group_size="32"), NotYetError, "(group size '32') are not read"),
    "no group size": (weights(group_size=None), NotYetError, "(group size None) are not read"),
    "by block": (weights(strategy="block"), NotYetError, "by 'block'"),
    "a strategy that is a list": (weights(strategy=["group"]), NotYetError, "by ['group']"),
    "by channel": (
        weights(strategy="channel"), CheckpointError, "a weight of [8, 64] under int4 channel has float32[8, 1]"),
    "symmetric that is text": (
        weights(symmetric="no"), CheckpointError, "0: symmetric = 'no' is not true or false"),
    "asymmetric without zero points": (weights(symmetric=False), CheckpointError, "0.weight_zero_point is missing"),
    "dynamic weights": (weights(dynamic=True), NotYetError, "0: dynamic weights and columns grouped by activation"),
    "columns in the order of activations": (weights(actorder="group"), NotYetError, "0: dynamic weights and columns"),
    "quantized outputs": (
        group(output_activations={"num_bits": 8}), NotYetError, "0 has quantized output_activations, which"),
    "inputs that are a list": (
        group(input_activations=[8]), CheckpointError, "input_activations of config group 'group_0' are no object but"),
    "inputs by no strategy": (inputs(strategy=None), NotYetError, "0: inputs of 8-bit 'int' by None (group size None,"),
    "inputs by channel": (inputs(strategy="channel"), NotYetError, "0: inputs of 8-bit 'int' by 'channel'"),
    "inputs of 16 bits": (inputs(num_bits=16), NotYetError, "0: inputs of 16-bit 'int' by 'token'"),
    "inputs of bits that are true": (inputs(num_bits=True), NotYetError, "0: inputs of True-bit 'int' by 'token'"),
    "float inputs of 4 bits": (inputs(type="float", num_bits=4), NotYetError, "0: inputs of 4-bit 'float' by 'token'"),
    "groups of inputs without a size": (inputs(strategy="group"), NotYetError, "by 'group' (group size None, dynamic"),
    "groups that do not divide the input": (
        inputs(strategy="group", group_size=48), CheckpointError, "0: its input of 64 numbers has no groups of 48"),
    "inputs by token and static": (
        inputs(dynamic=False), CheckpointError, "0: its input: static ranges are per tensor or channel, not 'token'"),
    "inputs with a global scale": (inputs(dynamic="local"), NotYetError, "dynamic 'local') are not read"),
    "dynamic that is text": (
        inputs(dynamic="yes"), CheckpointError, "0: dynamic = 'yes' of input_activations is not true or false"),
    "symmetric inputs that are text": (inputs(symmetric="no"), CheckpointError, "0: symmetric = 'no' of input_"),
    "asymmetric float inputs": (
        inputs(type="float", symmetric=False), CheckpointError, "0: its input: e4m3 takes no zero point"),
    "scales of inputs that are powers of two": (
        inputs(scale_dtype="torch.uint8"), NotYetError, "0: input_activations have scale_dtype = 'torch.uint8', which"),
    "static inputs without numbers": (
        inputs(strategy="tensor", dynamic=False), CheckpointError, "0.input_scale is missing; the input 'int8 tensor"),
    "a layout of bytes": (group(format="int-quantized"), CheckpointError, "0.weight is missing; int4 g32 needs it"),
    "a quantized cache": (
        top(kv_cache_scheme={"num_bits": 8}), NotYetError, "has kv_cache_scheme = {'num_bits': 8}, which"),
    "a rotation": (
        top(transform_config={"config_groups": {"R1": {}}}), NotYetError, "transform_config = {'config_groups': {'R1'"),
    "sparse weights": (
        top(sparsity_config={"format": "sparse-24"}), NotYetError, "sparsity_config = {'format': 'sparse"),
    "weights that were not compressed": (
        top(quantization_status="frozen"), NotYetError, "has quantization_status = 'frozen', which"),
    "a layer that is ignored and quantized": (
        top(ignore=["1", "0"]), CheckpointError, "0 has a weight_scale, but `ignore` of quantization_config names it"),
    "a layer that a pattern ignores": (
        top(ignore=["re:.*"]), CheckpointError, "0 has a weight_scale, but `ignore` of quantization_config names it"),
    "ignore that is text": (
        top(ignore="1"), CheckpointError, "`ignore` of quantization_config is not a list of names: '1'"),
    "another method": (top(quant_method="gptq"), CheckpointError, "does not describe a compressed-tensors checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_configuration_that_contradicts_itself_or_the_weights_is_refused(broken, case):
    change, kind, message = CONFIGURATIONS[case]
    refused(broken("sym", config=change), kind, message)


@pytest.mark.parametrize(
    "change",
    [
        top(sparsity_config={}, transform_config={}, kv_cache_scheme=None),
        weights(actorder="static"),
        group(format=None),
        top(format="mixed-precision"),
        group(targets=["re:0$"]),
    ],
)
def test_what_other_writers_say_to_no_effect_is_read(broken, change):
    assert fb.load(broken("sym", config=change), into=module()).plan.rows[0].becomes == "int4 g32"


def test_inputs_as_other_writers_spell_them_are_read(broken):
    observed = {"observer": None, "observer_kwargs": {}, "actorder": None, "zp_dtype": "torch.int8"}
    folder = broken("sym", config=inputs(symmetric=False, **observed))
    assert fb.load(folder, into=module()).plan.rows[0].becomes == "int4 g32, input int8 token asym"


@pytest.mark.parametrize("name", ["re:0", "Linear"])
def test_a_layer_whose_name_readers_would_take_for_a_pattern_or_class_is_not_written(tmp_path, name):
    result = fb.quantize(nn.ModuleDict({name: nn.Linear(64, 8)}), fb.Recipe([fb.Rule(kind="linear", weight="int8")]))
    with pytest.raises(CheckpointError, match=f"a layer called '{name}' would read as a"):
        result.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_layer_whose_name_is_a_path_is_not_written(tmp_path):
    result = fb.quantize(nn.ModuleDict({"/a": nn.Linear(64, 8)}), fb.Recipe([fb.Rule(kind="linear", weight="int8")]))
    with pytest.raises(CheckpointError, match=r"tensor name '/a\.bias' reads as a path out of its folder"):
        result.save(tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
