"""Quantized folders whose tensors do not fit: each is an error of `fewbit.load` with layer and value."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

import fewbit as fb
from fewbit.errors import CheckpointError


def test_what_is_not_changed_is_read(broken, made, module, readable):
    scheme, spelled = readable
    folder = broken(scheme)
    inputs = torch.randn(4, 64)
    loaded = fb.load(folder, into=module())
    assert [row.becomes for row in loaded.plan.rows] == [spelled, "float"]
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
        "sym", put("0.weight_scale", first(np.nan)), "0: 1 of 16 scales are NaN or infinite; the file"),
    "a scale that is infinite": ("asym", put("0.weight_scale", first(np.inf)), "0: 1 of 16 scales are NaN or infinite"),
    "scales that make infinite weights": (
        "sym", put("0.weight_scale", lambda a: np.full_like(a, 3e38)), "weights are NaN or infinite under scales up t"),
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
def test_tensors_that_do_not_fit_are_refused(broken, case, refused):
    scheme, change, message = TENSORS[case]
    refused(broken(scheme, tensors=change), CheckpointError, message)


def test_zero_points_that_another_writer_left_unpacked_are_read(broken, made, module):
    expected = fb.load(made / "asym", into=module()).model.get_submodule("0").qtensor
    zero = expected.zero_point.numpy()
    folder = broken("asym", tensors=put("0.weight_zero_point", zero.astype(np.int8)))
    found = fb.load(folder, into=module()).model.get_submodule("0").qtensor
    assert torch.equal(found.dequantize(), expected.dequantize())


def test_a_nan_among_float_codes_is_refused(broken, refused):
    folder = broken("float")
    path = folder / "model.safetensors"
    content = bytearray(path.read_bytes())
    length = int.from_bytes(content[:8], "little")
    begin = json.loads(content[8 : 8 + length])["0.weight"]["data_offsets"][0]
    content[8 + length + begin + 5] = 0xFF
    path.write_bytes(content)
    refused(folder, CheckpointError, "0: 1 of 512 weights are NaN; the file is damaged")


@pytest.mark.parametrize("damaged", ["0.weight_scale", "1.weight_scale", "1.bias"])
def test_a_module_of_ones_own_stays_whole_when_a_later_part_is_damaged(tmp_path, damaged, refused, module):
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int8 channel")])
    fb.quantize(module(), recipe, to="compressed-tensors").save(tmp_path / "out")
    arrays = load_file(tmp_path / "out" / "model.safetensors")
    arrays[damaged] = first(np.nan)(arrays[damaged]) if damaged.endswith("scale") else np.zeros(9, np.float32)
    save_file(arrays, tmp_path / "out" / "model.safetensors")
    message = "scales are NaN" if damaged.endswith("scale") else "holds 1.bias [9]; the model has [3]"
    refused(tmp_path / "out", CheckpointError, message)
