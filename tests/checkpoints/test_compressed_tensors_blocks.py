"""Weights whose scales are codes too, in folders: NVFP4 and the microscaling formats, there, back, and damaged."""

import json
import shutil

import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from hypothesis import given
from safetensors.torch import load_file, save_file
from torch import nn

import fewbit as fb
from fewbit.checkpoints.compressed_tensors_blocks import BLOCKS, decoded_blocks, encoded_blocks, stored_blocks
from fewbit.errors import CheckpointError
from fewbit.qtensor import QTensor, quantize
from fewbit.schemes.block_formats import NVFP4

SCHEMES = {str(scheme): word for word, scheme in BLOCKS.items()}


def module():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 8), nn.Linear(8, 3))


def recipe(weight):
    return fb.Recipe([fb.Rule("0", weight=weight), fb.keep("1")])


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder for each scheme; tests must not change them."""
    root = tmp_path_factory.mktemp("made")
    for scheme in SCHEMES:
        fb.quantize(module(), recipe(scheme), to="compressed-tensors").save(root / scheme)
    return root


@pytest.mark.parametrize("search", ["", " mse"])
@pytest.mark.parametrize("scheme", SCHEMES)
def test_what_is_loaded_is_what_was_saved_and_is_saved_again_as_the_same_bytes(tmp_path, scheme, search):
    result = fb.quantize(module(), recipe(scheme + search), to="compressed-tensors")
    result.save(tmp_path / "out")
    loaded = fb.load(tmp_path / "out", into=module())
    ours, theirs = result.model[0].qtensor, loaded.model[0].qtensor
    assert loaded.plan.rows[0].becomes == scheme
    assert torch.equal(theirs.codes, ours.codes)
    assert torch.equal(theirs.scale.codes, ours.scale.codes)
    assert torch.equal(theirs.scale.scale, ours.scale.scale)
    loaded.save(tmp_path / "again")
    first, second = (tmp_path / name / "model.safetensors" for name in ("out", "again"))
    assert first.read_bytes() == second.read_bytes()
    stored = load_file(first)
    assert sum(tensor.nbytes for tensor in stored.values()) == result.plan.bytes_after


@pytest.mark.parametrize("scheme", SCHEMES)
def test_the_configuration_names_the_layout(made, scheme):
    config = json.loads((made / scheme / "config.json").read_text())["quantization_config"]
    assert (config["format"], config["config_groups"]["group_0"]["format"]) == (SCHEMES[scheme], SCHEMES[scheme])
    weights = config["config_groups"]["group_0"]["weights"]
    expected = ("tensor_group", 16) if scheme == "nvfp4" else ("group", 32)
    assert (weights["strategy"], weights["group_size"]) == expected


def test_the_global_scale_in_the_file_is_the_reciprocal(made):
    stored = load_file(made / "nvfp4" / "model.safetensors")
    largest = module()[0].weight.abs().max() / 6 / 448
    scale = 1 / stored["0.weight_global_scale"]
    assert largest <= scale < 2 * largest  # widened to a power of two
    assert torch.frexp(scale).mantissa == 0.5
    nibbles = stored["0.weight_packed"][0, 0]
    values = torch.tensor([0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0])
    by_hand = values[[int(nibbles) & 15, int(nibbles) >> 4]] * stored["0.weight_scale"][0, 0].float() * scale
    loaded = fb.load(made / "nvfp4", into=module())
    assert torch.equal(by_hand, loaded.model[0].qtensor.dequantize()[0, :2])


@given(
    scheme=st.sampled_from(sorted(BLOCKS)), rows=st.integers(1, 5), groups=st.integers(1, 4),
    exponent=st.integers(-60, 60), seed=st.integers(0, 99),
)  # fmt: skip
def test_every_weight_comes_back_to_the_bit(scheme, rows, groups, exponent, seed):
    scheme = BLOCKS[scheme]
    shape = rows, groups * scheme.granularity.size
    weight = np.random.default_rng(seed).standard_normal(shape).astype(np.float32) * np.float32(2.0**exponent)
    weight[0] *= seed % 3  # 0: an empty row
    before = quantize(weight, scheme)
    arrays = encoded_blocks("0", before)
    assert [(part.name, part.shape, part.dtype) for part in stored_blocks("0", shape, scheme)] == [
        (f"0.{suffix}", array.shape, str(array.dtype)) for suffix, array in arrays.items()
    ]
    after = decoded_blocks(arrays, scheme)
    assert np.array_equal(after.dequantize(), before.dequantize())
    assert np.array_equal(after.codes, before.codes)


@given(number=st.floats(2.0**-60, 2.0**60, width=32))
def test_a_global_scale_of_another_writer_is_read_and_written_again_as_the_same_scale(number):
    weight = quantize(np.ones((1, 16), np.float32), NVFP4)
    arrays = encoded_blocks("0", weight) | {"weight_global_scale": np.asarray([number], np.float32)}
    once = decoded_blocks(arrays, NVFP4)
    again = decoded_blocks(encoded_blocks("0", once), NVFP4)
    assert np.array_equal(once.scale.scale, again.scale.scale)
    assert np.float32(1) / np.float32(number) == once.scale.scale[0, 0]


def test_a_global_scale_that_is_no_reciprocal_is_refused():
    weight = quantize(np.ones((1, 16), np.float32), NVFP4)
    inner = weight.scale
    # Between 1 and 2 the reciprocals of float32 numbers are further apart than these numbers are.
    scale = next(
        own for own in np.float32(1.9) + np.arange(64, dtype=np.float32) * np.float32(2.0**-23)
        if all(np.float32(1) / np.nextafter(np.float32(1) / own, np.float32(to)) != own for to in (0, 9))
        and np.float32(1) / (np.float32(1) / own) != own
    )  # fmt: skip
    inner = QTensor(codes=inner.codes, scale=np.asarray([[scale]]), zero_point=None, scheme=inner.scheme)
    odd = QTensor(codes=weight.codes, scale=inner, zero_point=None, scheme=NVFP4)
    with pytest.raises(CheckpointError, match=r"0: its global scale 1\.9\d* is the reciprocal of no float32"):
        encoded_blocks("0", odd)


@pytest.mark.parametrize("scheme", ["mxfp8e5m2", "mxfp6e3m2", "nf4-double", "e2m1 g32"])
def test_what_the_library_has_no_layout_for_is_a_problem_of_the_plan(scheme):
    model = nn.Sequential(nn.Linear(64, 16))
    problems = fb.plan(model, fb.Recipe([fb.Rule("0", weight=scheme)]), to="compressed-tensors").problems
    assert problems == (
        f"0: compressed-tensors has no layout for '{scheme}'; use int1 to int8 or e4m3 by tensor, channel or group, "
        "nvfp4, mxfp4, mxfp6, mxfp8, fp16 or bf16",
    )


def test_a_width_that_groups_do_not_divide_is_a_problem_of_the_plan():
    model = nn.Sequential(nn.Linear(40, 16))
    problems = fb.plan(model, fb.Recipe([fb.Rule("0", weight="nvfp4")]), to="compressed-tensors").problems
    assert problems == ("0: in_features 40 is not a multiple of group size 16; use channel, or a preset, which adapts",)


def cut(tensor):
    return tensor[:, :-1].contiguous()


def with_byte(byte):
    def change(tensor):
        tensor = tensor.clone()
        tensor.view(torch.uint8).reshape(-1)[3] = byte
        return tensor

    return change


def filled(number):
    return lambda tensor: torch.full_like(tensor, number)


DAMAGE = {
    "codes cut": ("mxfp4", "weight_packed", cut, "0: weight_packed has shape [8, 31], which is that of no weight"),
    "codes of a row": ("mxfp4", "weight_packed", lambda t: t[0], "0: weight_packed has shape [32], which is that of"),
    "no codes at all": ("mxfp6", "weight_packed", lambda t: t[:, :0], "0: weight_packed has shape [8, 0], which is"),
    "codes of a row less": (
        "mxfp6", "weight_packed", lambda t: t[1:].contiguous(),
        "0: weight_scale is uint8[8, 2]; a weight of [7, 64] under mxfp6 has uint8[7, 2]"),
    "codes of another width": (
        "mxfp4", "weight_packed", lambda t: t[:, :16].contiguous(),
        "0: weight_scale is uint8[8, 2]; a weight of [8, 32] under mxfp4 has uint8[8, 1]"),
    "codes of another type": (
        "nvfp4", "weight_packed", lambda t: t.view(torch.int8), "0: weight_packed is int8[8, 32]; a weight of [8, 64]"),
    "bytes of another type": ("mxfp8", "weight", lambda t: t.view(torch.uint8), "0: weight is uint8[8, 64]; a weight"),
    "scales of another shape": (
        "nvfp4", "weight_scale", cut, "0: weight_scale is float8_e4m3fn[8, 3]; a weight of [8, 64] under nvfp4 has"),
    "scales of the other kind": (
        "nvfp4", "weight_scale", lambda t: t.view(torch.uint8), "0: weight_scale is uint8[8, 4]; a weight of [8, 64]"),
    "scales that are floats": (
        "mxfp4", "weight_scale", lambda t: t.float(), "'group_0' contradicts itself: mxfp4-pack-quantized holds mxfp4"),
    "a scale that is NaN": ("nvfp4", "weight_scale", with_byte(0x7F), "0: 1 of 32 scales are NaN or negative"),
    "a scale that is negative": ("nvfp4", "weight_scale", with_byte(0x81), "0: 1 of 32 scales are NaN or negative"),
    "an exponent that is NaN": ("mxfp4", "weight_scale", with_byte(0xFF), "0: 1 of 16 scales are NaN, or 2^-127"),
    "an exponent of 0": ("mxfp8", "weight_scale", with_byte(0), "0: 1 of 16 scales are NaN, or 2^-127, which is no"),
    "a weight that is NaN": ("mxfp8", "weight", with_byte(0xFF), "0: 1 of 512 weights are NaN; the file is damaged"),
    "a global scale of 0": (
        "nvfp4", "weight_global_scale", filled(0.0), "0: its weight_global_scale is 0, which has no reciprocal"),
    "a global scale below 0": ("nvfp4", "weight_global_scale", filled(-2.0), "weight_global_scale is -2, which has no"),
    "a global scale that is NaN": ("nvfp4", "weight_global_scale", filled(float("nan")), "is nan, which has no"),
    "a global scale without end": ("nvfp4", "weight_global_scale", filled(float("inf")), "is inf, which has no"),
    "a global scale of a subnormal": ("nvfp4", "weight_global_scale", filled(1e-40), "is 1e-40, which has no"),
    "a global scale too large": ("nvfp4", "weight_global_scale", filled(3e38), "is 3e+38, which has no reciprocal"),
    "a global scale for each row": (
        "nvfp4", "weight_global_scale", lambda t: t.repeat(8), "0: weight_global_scale is float32[8]; a weight of"),
    "a global scale in half": ("nvfp4", "weight_global_scale", torch.Tensor.half, "0: weight_global_scale is float16"),
    "no global scale": ("nvfp4", "weight_global_scale", None, "0.weight_global_scale is missing; nvfp4 needs it"),
    "no codes": ("mxfp4", "weight_packed", None, "0.weight_packed is missing; mxfp4 needs it"),
    "no bytes": ("mxfp8", "weight", None, "0.weight is missing; mxfp8 needs it"),
    "no scales": ("nvfp4", "weight_scale", None, "is part of a quantized weight, but 0.weight_scale is missing"),
}  # fmt: skip


def changed(folder, change):
    """Change the tensors by `change`, in place."""
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("case", DAMAGE)
def test_tensors_that_do_not_fit_are_refused(made, tmp_path, case, refused):
    scheme, suffix, own, message = DAMAGE[case]

    def change(tensors):
        old = tensors.pop(f"0.{suffix}")
        if own is not None:
            tensors[f"0.{suffix}"] = own(old)

    folder = shutil.copytree(made / scheme, tmp_path / "out")
    refused(changed(folder, change), CheckpointError, message)


@pytest.mark.parametrize("suffix", ["weight_zero_point", "weight_shape", "weight"])
def test_parts_that_the_layout_has_not_are_refused(made, tmp_path, suffix, refused):
    folder = shutil.copytree(made / "nvfp4", tmp_path / "out")
    extra = {f"0.{suffix}": torch.zeros(8, 64, dtype=torch.int8)}
    message = f"0: it holds {suffix}, which has no meaning under nvfp4"
    refused(changed(folder, lambda tensors: tensors.update(extra)), CheckpointError, message)


def test_a_global_scale_without_axes_is_read(made, tmp_path):
    def flat(tensors):
        tensors["0.weight_global_scale"] = tensors["0.weight_global_scale"].reshape(())

    loaded = fb.load(changed(shutil.copytree(made / "nvfp4", tmp_path / "out"), flat), into=module())
    expected = fb.load(made / "nvfp4", into=module())
    assert torch.equal(loaded.model[0].qtensor.dequantize(), expected.model[0].qtensor.dequantize())


CONTRADICTIONS = {
    "bits": ("nvfp4", {"num_bits": 8}),
    "integers": ("mxfp8", {"type": "int"}),
    "groups": ("mxfp4", {"group_size": 64}),
    "a strategy": ("nvfp4", {"strategy": "group"}),
    "zero points": ("mxfp6", {"symmetric": False}),
    "a type of scales": ("mxfp8", {"scale_dtype": "torch.float8_e4m3fn"}),
    "ranges of each run": ("nvfp4", {"dynamic": True}),
}


@pytest.mark.parametrize("case", CONTRADICTIONS)
def test_a_group_that_says_something_else_of_its_weights_is_refused(made, tmp_path, case, refused):
    scheme, said = CONTRADICTIONS[case]
    folder = shutil.copytree(made / scheme, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"] |= said
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, CheckpointError, "config group 'group_0' contradicts itself: ")


@pytest.mark.parametrize("key", ["num_bits", "type"])
def test_a_group_that_leaves_out_what_other_readers_take_for_int8_is_refused(made, tmp_path, key, refused):
    folder = shutil.copytree(made / "nvfp4", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    del config["quantization_config"]["config_groups"]["group_0"]["weights"][key]
    (folder / "config.json").write_text(json.dumps(config))
    refused(folder, CheckpointError, "config group 'group_0' contradicts itself: ")


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_group_without_a_word_for_its_layout_is_read_by_what_it_says_of_weights(made, tmp_path, scheme):
    folder = shutil.copytree(made / scheme, tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"]["config_groups"]["group_0"]["format"] = None
    config["quantization_config"]["format"] = "mixed-precision"
    (folder / "config.json").write_text(json.dumps(config))
    loaded, expected = fb.load(folder, into=module()), fb.load(made / scheme, into=module())
    assert torch.equal(loaded.model[0].qtensor.dequantize(), expected.model[0].qtensor.dequantize())
