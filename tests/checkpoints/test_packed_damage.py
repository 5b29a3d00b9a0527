"""GPTQ and AWQ folders whose parts do not fit: each is an error of `fewbit.load` with layer and value."""

import json
import re

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import fewbit as fb
from fewbit.errors import CheckpointError, FewbitError, NotYetError

FOLDERS = {
    "v1": ("gptq", "int4 g32 asym"),
    "sym": ("gptq", "int4 g32"),
    "3": ("gptq", "int3 g32"),
    "awq": ("awq", "int4 g32 asym"),
}


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 3))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder for each of `FOLDERS`: layer `0` quantized, layer `1` float; tests must not change them."""
    root = tmp_path_factory.mktemp("made")
    for name, (to, weight) in FOLDERS.items():
        recipe = fb.Recipe([fb.Rule("0", weight=weight), fb.keep("1")])
        fb.quantize(module(), recipe, to=to).save(root / name)
    return root


@pytest.fixture
def broken(made, tmp_path):
    """Copy a folder with some of its tensors or of its configuration changed."""

    def change(name, *, tensors=None, config=None):
        arrays = {own: np.array(array) for own, array in load_file(made / name / "model.safetensors").items()}
        configuration = json.loads((made / name / "config.json").read_text())
        if tensors is not None:
            tensors(arrays)
        configuration["quantization_config"] |= config or {}
        (tmp_path / "config.json").write_text(json.dumps(configuration))
        save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return tmp_path

    return change


def put(name, value):
    def change(arrays):
        arrays[name] = np.ascontiguousarray(value(arrays[name]) if callable(value) else value)

    return change


def drop(name):
    return lambda arrays: arrays.pop(name)


def first(number):
    def change(array):
        array.reshape(-1)[0] = number
        return array

    return change


TENSORS = {
    "codes of another type": ("v1", put("0.qweight", lambda a: a.astype(np.int64)), "0: qweight is int64[8, 32], no"),
    "codes of three axes": ("v1", put("0.qweight", lambda a: a[None]), "0: qweight is int32[1, 8, 32], no matrix of"),
    "codes too short": (
        "v1", put("0.qweight", lambda a: a[:7]),
        "0: in_features 56 is not a multiple of its group size 32"),
    "half of the codes": (
        "v1", put("0.qweight", lambda a: a[:4]),
        "0: qzeros is int32[2, 4]; a weight of [32, 32] under int4 g32 asym has int32[1, 4]"),
    "a column of codes too few": (
        "v1", put("0.qweight", lambda a: a[:, :24]),
        "0: qzeros is int32[2, 4]; a weight of [24, 64] under int4 g32 asym has int32[2, 3]"),
    "outputs that fill no word": (
        "v1", put("0.qweight", lambda a: a[:, :30]), "0: out_features 30 is not a multiple of 8, which its tensors c"),
    "no codes at all": ("v1", put("0.qweight", np.zeros((0, 32), np.int32)), "0: qweight is int32[0, 32], no matrix"),
    "rows that hold no whole codes": (
        "3", put("0.qweight", lambda a: a[:5]), "0: qweight is int32[5, 32], no matrix of whole codes of 3 bits"),
    "scales turned over": ("v1", put("0.scales", lambda a: a.T), "0: scales is float16[32, 2]; a weight of [32, 64]"),
    "scales of whole numbers": (
        "sym", put("0.scales", lambda a: a.astype(np.int32)), "0: scale type 'int32' is none of float16"),
    "a scale that is NaN": ("v1", put("0.scales", first(np.nan)), "0: 1 of 64 scales are NaN or infinite; the file is"),
    "a scale that is infinite": ("awq", put("0.scales", first(np.inf)), "0: 1 of 64 scales are NaN or infinite"),
    "scales that make infinite weights": (
        "sym", put("0.scales", np.full((2, 32), 3e38, np.float32)), "weights are NaN or infinite under scales up to"),
    "zero points on which readers disagree": (
        "v1", put("0.qzeros", first(-1)), "0: 8 of 64 zero points are stored as 15, in the checkpoint_format gptq 0"),
    "zero points that sym denies": (
        "sym", put("0.qzeros", first(0x77777776)), "0: 1 of 64 zero points are not 8 though quantization_config says"),
    "an index too short": (
        "v1", put("0.g_idx", lambda a: a[:32]),
        "0: g_idx is int32[32]; a weight of [32, 64] under int4 g32 asym has int32[64]"),
    "an index of another type": ("v1", put("0.g_idx", lambda a: a.astype(np.int64)), "0: g_idx is int64[64]; a weight"),
    "no zero points": ("v1", drop("0.qzeros"), "0.qzeros is missing; a GPTQ weight needs it"),
    "no scales": ("awq", drop("0.scales"), "0.scales is missing; an AWQ weight needs it"),
    "no codes": ("v1", drop("0.qweight"), "is part of a quantized weight, but 0.qweight is missing"),
    "no codes beside zero points": ("awq", drop("0.qweight"), "0.qzeros is part of a quantized weight, but 0.qweight"),
    "a float weight beside": (
        "awq", put("0.weight", np.zeros((32, 64), np.float32)), "0 has a weight beside its qweight; which counts is"),
    "awq codes of another type": ("awq", put("0.qweight", lambda a: a.astype(np.int8)), "0: qweight is int8[64, 4],"),
    "awq zero points of another shape": (
        "awq", put("0.qzeros", lambda a: a[:1]),
        "0: qzeros is int32[1, 4]; a weight of [32, 64] under int4 g32 asym has int32[2, 4]"),
    "a layer of another size": (
        "awq", lambda a: [put("0.qweight", a["0.qweight"][:32])(a), put("0.qzeros", a["0.qzeros"][:1])(a),
                          put("0.scales", a["0.scales"][:1])(a)],
        "holds 0 of shape (32, 32); the model has (32, 64)"),
}  # fmt: skip
CONFIGURATIONS = {
    "bits of GPTQModel only": ("v1", {"bits": 5}, NotYetError, "0: GPTQ weights of 5 bits are not read by this versi"),
    "bits that are text": ("v1", {"bits": "4"}, NotYetError, "0: GPTQ weights of '4' bits are not read"),
    "bits that are true": ("v1", {"bits": True}, NotYetError, "0: GPTQ weights of True bits are not read"),
    "other bits than the tensors": (
        "v1", {"bits": 8}, CheckpointError, "0: qzeros is int32[2, 4]; a weight of [32, 32] under int8 g32 asym has"),
    "another group size": (
        "v1", {"group_size": 16}, CheckpointError, "0: qzeros is int32[2, 4]; a weight of [32, 64] under int4 g16 as"),
    "no group size": ("v1", {"group_size": 0}, CheckpointError, "0: group_size = 0 is neither a number of columns nor"),
    "a huge group size": (
        "v1", {"group_size": 1 << 60}, CheckpointError, "0: in_features 64 is not a multiple of its group size"),
    "sym that is a number": ("v1", {"sym": 1}, CheckpointError, "0: sym = 1 is not true or false"),
    "desc_act that is text": ("v1", {"desc_act": "no"}, CheckpointError, "0: desc_act = 'no' is not true or false"),
    "another checkpoint_format": (
        "v1", {"checkpoint_format": "marlin"}, NotYetError, "checkpoint_format 'marlin' is not read by this version;"),
    "other words": ("v1", {"pack_dtype": "int8"}, NotYetError, "quantization_config has pack_dtype = 'int8', which"),
    "dynamic that is a list": ("v1", {"dynamic": []}, CheckpointError, "`dynamic` of quantization_config is no objec"),
    "dynamic of numbers": ("v1", {"dynamic": {"0": 4}}, CheckpointError, "is no object of objects: {'0': 4}"),
    "a pattern that is none": (
        "v1", {"dynamic": {"+:(": {}}}, CheckpointError, "`dynamic` holds a pattern that is not a regular expression"),
    "a layer that is to be float": (
        "v1", {"dynamic": {"-:0": {}}}, CheckpointError, "0 has a qweight, but `dynamic` of quantization_config leav"),
    "awq of other bits": ("awq", {"bits": 8}, NotYetError, "AWQ weights of 8 bits are not read by this version; 4 are"),
    "another awq layout": ("awq", {"version": "gemv"}, NotYetError, "the AWQ layout 'gemv' is not read by this versi"),
    "an awq layout that is none": ("awq", {"version": 3}, NotYetError, "the AWQ layout 3 is not read by this version"),
    "awq without group size": ("awq", {"group_size": None}, CheckpointError, "group_size = None is neither a number"),
    "gptq called awq": (
        "v1", {"quant_method": "awq", "version": "gemm"}, CheckpointError,
        "0: in_features 8 is not a multiple of its group size 32"),
}  # fmt: skip


def refused(folder, kind, message):
    """Load into a module of one's own: the error is of that kind and text, and the module stays as it was."""
    model = module()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(FewbitError, match=re.escape(message)) as caught:
        fb.load(folder, into=model)
    assert type(caught.value) is kind
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [type(layer) for layer in model] == [nn.Linear, nn.Linear]


@pytest.mark.parametrize("name", FOLDERS)
def test_what_is_not_changed_is_read(broken, name):
    assert fb.load(broken(name), into=module()).plan.rows[0].becomes == FOLDERS[name][1]


@pytest.mark.parametrize("case", TENSORS)
def test_tensors_that_do_not_fit_are_refused(broken, case):
    name, change, message = TENSORS[case]
    refused(broken(name, tensors=change), CheckpointError, message)


@pytest.mark.parametrize("case", CONFIGURATIONS)
def test_configurations_that_lie_are_refused(broken, case):
    name, config, kind, message = CONFIGURATIONS[case]
    refused(broken(name, config=config), kind, message)


@pytest.mark.parametrize("value", [-1, 2, 1 << 30])
def test_an_index_of_groups_that_are_not_there_is_refused(broken, value):
    folder = broken("v1", tensors=put("0.g_idx", first(value)), config={"desc_act": True})
    low, high = min(value, 0), max(value, 1)
    refused(folder, CheckpointError, f"0: g_idx reaches from {low} to {high}; there are 2 groups; the file is damaged")


def test_a_name_with_path_separators_is_refused(broken):
    folder = broken("v1", tensors=put("../0.qweight", np.zeros((8, 32), np.int32)))
    refused(folder, CheckpointError, "tensor name '../0.qweight' reads as a path out of its folder")


def test_a_configuration_that_nests_without_end_is_refused(broken):
    folder = broken("v1")
    (folder / "config.json").write_text('{"quantization_config": ' + "[" * 100_000)
    refused(folder, CheckpointError, "is not read: its JSON nests deeper than 64")
