"""Quantized folders whose configuration lies: each is an error of `fewbit.load` with layer and value."""

import pytest
from torch import nn

import fewbit as fb
from fewbit.errors import CheckpointError, NotYetError


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
        group(targets=["re:("]), CheckpointError, "holds a pattern that is not a regular expression: missing )"),
    "a pattern that repeats without end": (
        group(targets=["re:a{99999999999999}"]), CheckpointError, "holds a pattern that is not a regular expression"),
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
    "bits that are text": (weights(num_bits="4"), NotYetError, "0: '4'-bit 'int' by 'group'"),
    "bits that are null": (weights(num_bits=None), NotYetError, "0: None-bit 'int' by 'group'"),
    "bits that are true": (weights(num_bits=True), NotYetError, "0: True-bit 'int' by 'group'"),
    "nine bits": (weights(num_bits=9), NotYetError, "0: 9-bit 'int' by 'group'"),
    "symmetric one bit": (weights(num_bits=1), CheckpointError, "0: int1 symmetric has the levels -1 and 0"),
    "another group size": (
        weights(group_size=16), CheckpointError, "0: weight_scale is float32[8, 2]; a weight of [8, 64]"),
    "group size zero": (weights(group_size=0), NotYetError, "by 'group' (group size 0) is not read"),
    "a group size that is text": (weights(group_size="32"), NotYetError, "(group size '32') is not read"),
    "no group size": (weights(group_size=None), NotYetError, "(group size None) is not read"),
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
    "inputs by no strategy": (inputs(strategy=None), NotYetError, "0: its input: 8-bit 'int' by None (group size None"),
    "inputs by channel": (inputs(strategy="channel"), NotYetError, "0: its input: 8-bit 'int' by 'channel'"),
    "inputs of 16 bits": (inputs(num_bits=16), NotYetError, "0: its input: 16-bit 'int' by 'token'"),
    "inputs of bits that are true": (inputs(num_bits=True), NotYetError, "0: its input: True-bit 'int' by 'token'"),
    "float inputs of 4 bits": (inputs(type="float", num_bits=4), NotYetError, "0: its input: 4-bit 'float' by 'token'"),
    "groups of inputs without a size": (inputs(strategy="group"), NotYetError, "by 'group' (group size None) is"),
    "groups that do not divide the input": (
        inputs(strategy="group", group_size=48), CheckpointError, "0: its input of 64 numbers has no groups of 48"),
    "inputs by token and static": (
        inputs(dynamic=False), CheckpointError, "0: its input: static ranges are per tensor or channel, not 'token'"),
    "inputs with a global scale": (inputs(dynamic="local"), NotYetError, "0: its input: dynamic = 'local' is not read"),
    "dynamic that is text": (
        inputs(dynamic="yes"), CheckpointError, "0: its input: dynamic = 'yes' is not true or false"),
    "symmetric inputs that are text": (inputs(symmetric="no"), CheckpointError, "0: its input: symmetric = 'no' is"),
    "asymmetric float inputs": (
        inputs(type="float", symmetric=False), CheckpointError, "0: its input: e4m3 takes no zero point"),
    "scales of inputs that are powers of two": (
        inputs(scale_dtype="torch.uint8"), NotYetError, "0: its input has scale_dtype = 'torch.uint8', which"),
    "static inputs without numbers": (
        inputs(strategy="tensor", dynamic=False), CheckpointError, "0.input_scale is missing; the input 'int8 tensor"),
    "a layout of bytes": (group(format="int-quantized"), CheckpointError, "0.weight is missing; int4 g32 needs it"),
    "a quantized cache": (
        top(kv_cache_scheme={"num_bits": 8}), CheckpointError, "has a kv_cache_scheme, but no attention has a"),
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
    "another method": (top(quant_method="hqq"), CheckpointError, "does not describe a compressed-tensors checkpoint"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_a_configuration_that_contradicts_itself_or_the_weights_is_refused(broken, case, refused):
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
def test_what_other_writers_say_to_no_effect_is_read(broken, change, module):
    assert fb.load(broken("sym", config=change), into=module()).plan.rows[0].becomes == "int4 g32"


def test_inputs_as_other_writers_spell_them_are_read(broken, module):
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
