"""Quantized folders move between layouts without a change of their values, or the loss is refused, or told."""

import hashlib
import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

import fewbit as fb
from fewbit.checkpoints.awq_layer import encoded
from fewbit.errors import CheckpointError, PlanError, RecipeError
from fewbit.sources.checkpoint import CheckpointFolder

LAYOUTS = ("gptq", "awq", "compressed-tensors")


@pytest.fixture(scope="module")
def wide_llama(small_llama):
    """Make a small Llama whose widths groups of 128 divide."""
    return partial(small_llama, hidden_size=128, intermediate_size=256)


@pytest.fixture(scope="module")
def saved(wide_llama):
    """Quantize a Llama, and save it."""

    def made(path, weight, to, model=None, **options):
        rules = [fb.keep(kind="head"), fb.Rule(kind="linear", weight=weight, **options)]
        result = fb.quantize(model or wide_llama(), fb.Recipe(rules), to=to, calibration=[torch.arange(48)[None]])
        return result.save(path, to=to)

    return made


def digests(folder):
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.iterdir()
        if not path.name.startswith("report.")  # of the run that quantized, which a conversion is not
    }


def names(path):
    return sorted(entry.name for entry in path.iterdir())


def weights(folder):
    return {
        name: value.dequantize() for name, value in CheckpointFolder(folder).checkpoint.tensors()
        if isinstance(value, fb.QTensor)
    }  # fmt: skip


def logits(folder):
    with torch.no_grad():
        return fb.load(folder).model(torch.arange(20)[None]).logits


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("weight", ["int4 g32", "int4 g64 asym"])
def test_from_gptq_to_awq_to_compressed_tensors_and_back_gives_the_same_bytes(
    tmp_path, weight, dtype, tied, saved, wide_llama
):
    saved(tmp_path / "0", weight, "gptq", wide_llama(dtype, tie_word_embeddings=tied))
    for number, to in enumerate(["awq", "compressed-tensors", "gptq"]):
        done = fb.convert(tmp_path / str(number), tmp_path / str(number + 1), to)
        assert len(done.layers) == 14
        assert done.lossy == ()
        assert "14 of 14 quantized weights, read back, are equal to the bit" in str(done)
    assert digests(tmp_path / "3") == digests(tmp_path / "0")
    expected = logits(tmp_path / "0")
    assert all(torch.equal(logits(tmp_path / str(number)), expected) for number in (1, 2, 3))


@pytest.mark.parametrize("weight", ["int2 g32 asym", "int3 channel", "int8 g64", "int8 channel asym"])
def test_widths_that_awq_has_not_move_between_the_other_two(tmp_path, weight, saved):
    saved(tmp_path / "0", weight, "gptq")
    fb.convert(tmp_path / "0", tmp_path / "1", "compressed-tensors")
    fb.convert(tmp_path / "1", tmp_path / "2", "gptq")
    assert digests(tmp_path / "2") == digests(tmp_path / "0")


FINER = {
    "int4 tensor": ("gptq", "int4 channel"), "int4 channel asym": ("awq", "int4 g128 asym"),
    "int3 g32": ("awq", "int4 g32"), "int5 channel asym": ("gptq", "int8 channel asym"),
    "int2 g256": ("awq", "int4 g128"), "int4 g128": ("awq", "int4 g128"),
}  # fmt: skip


@pytest.mark.parametrize("weight", FINER)
def test_levels_that_lie_among_those_of_a_finer_scheme_are_kept(tmp_path, weight, saved, small_llama):
    to, becomes = FINER[weight]
    model = small_llama(
        torch.float16, vocab_size=64, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_key_value_heads=4
    )
    folder = saved(tmp_path / "0", weight, "compressed-tensors", model)
    done = fb.convert(folder, tmp_path / "1", to)
    assert {layer.after for layer in done.layers} == {becomes}
    before, after = weights(folder), weights(tmp_path / "1")
    assert all(np.array_equal(after[name], value) for name, value in before.items())


def test_scales_move_to_bfloat16_only_where_it_holds_them(tmp_path, saved, wide_llama):
    saved(tmp_path / "0", "int4 g32", "gptq")
    with pytest.raises(
        PlanError, match=r"model\.\S+: bfloat16 does not hold \d+ of \d+ scales exactly; --lossy rounds"
    ):
        fb.convert(tmp_path / "0", tmp_path / "1", "compressed-tensors", dtype="bfloat16")
    assert names(tmp_path) == ["0"]
    rule = fb.Rule(kind="linear", weight=replace(fb.parse_scheme("int4 g32"), scale_type="bfloat16"))
    result = fb.quantize(wide_llama(), fb.Recipe([fb.keep(kind="head"), rule]), to="gptq")
    result.save(tmp_path / "coarse")  # scales of 8 significant bits, which both types hold
    done = fb.convert(tmp_path / "coarse", tmp_path / "1", "compressed-tensors", dtype="bfloat16")
    assert done.lossy == ()
    assert {str(own.scale_type) for own in CheckpointFolder(tmp_path / "1").checkpoint.schemes.values()} == {"bfloat16"}


REFUSED = {
    "other bits": ("int8 g32", "gptq", "awq", "AWQ has no layout for 'int8 g32'; use int4"),
    "small floats": ("e4m3", "compressed-tensors", "gptq", "GPTQ has no layout for 'e4m3 channel'; use int2, int3"),
    "float32 scales": ("int4 g32", "compressed-tensors", "gptq", r"float16 does not hold \d+ of \d+ scales exactly"),
    "rounded inputs": ("int8", "compressed-tensors", "gptq", "GPTQ files round no input, and here is 'int8 token"),
    "fixed inputs": ("int8", "compressed-tensors", "gptq", "GPTQ files round no input, and here is 'int8 tensor"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_held_is_refused_with_layer_and_reason_or_rounded_and_measured_if_asked(tmp_path, case, saved):
    weight, source, to, message = REFUSED[case]
    given = {"rounded inputs": {"input": "int8"}, "fixed inputs": {"input": "int8 static"}}.get(case, {})
    folder = saved(tmp_path / "0", weight, source, **given)
    with pytest.raises(PlanError, match=rf"model\.layers\.\S+( and 13 more)?: {message}.*lossy"):
        fb.convert(folder, tmp_path / "1", to)
    assert names(tmp_path) == ["0"]
    done = fb.convert(folder, tmp_path / "1", to, lossy=True)
    before, after = weights(folder), weights(tmp_path / "1")
    told = {layer.name: layer.sqnr for layer in done.layers}
    assert len(told) == 14
    for name, value in before.items():
        lost = float(((value - after[name]).astype(np.float64) ** 2).sum())
        sqnr = 10 * np.log10(float((value.astype(np.float64) ** 2).sum()) / lost) if lost else None
        assert told[name] == (sqnr if sqnr is None else pytest.approx(sqnr, rel=1e-9))  # sums in another order
    assert f"{len(done.lossy)} were rounded anew, to nearest:" in str(done)
    # Weights of 8 bits on a grid of 4 keep some 20 dB; where only scales are rounded the last of 11 bits is lost.
    least = {
        "other bits": 17.0,
        "small floats": 30.0,
        "float32 scales": 65.0,
        "rounded inputs": 30.0,
        "fixed inputs": 30.0,
    }
    assert min(layer.sqnr for layer in done.lossy) > least[case]
    assert {layer.unrounded is not None for layer in done.layers} == {"input" in given}
    assert ("the input is no longer rounded of model.layers.0.self_attn.q_proj (was int8" in str(done)) == bool(given)


def test_columns_in_act_order_are_refused_with_the_reason_and_rounded_if_asked(tmp_path, saved):
    folder = saved(tmp_path / "0", "int4 g32", "gptq")
    arrays = {name: np.array(array) for name, array in load_file(folder / "model.safetensors").items()}
    np.random.default_rng(0).shuffle(arrays["model.layers.0.mlp.up_proj.g_idx"])
    save_file(arrays, folder / "model.safetensors", metadata={"format": "pt"})
    configuration = json.loads((folder / "config.json").read_text())
    configuration["quantization_config"]["desc_act"] = True
    (folder / "config.json").write_text(json.dumps(configuration))
    for to in LAYOUTS:
        with pytest.raises(PlanError, match=r"^model\.layers\.0\.mlp\.up_proj: its columns share scales by g_idx"):
            fb.convert(folder, tmp_path / to, to)
        done = fb.convert(folder, tmp_path / to, to, lossy=True)
        assert [(own.name, own.before, own.after) for own in done.lossy] == [
            ("model.layers.0.mlp.up_proj", "int4 g32", "int4 g32")
        ]
        assert done.lossy[0].sqnr > 17.0


def test_a_folder_that_reads_back_otherwise_is_removed(tmp_path, monkeypatch, saved):
    """The negative control of the check: what is written loses a bit on its way."""
    saved(tmp_path / "0", "int4 g32", "gptq")

    def flipped(name, qtensor):
        arrays = encoded(name, qtensor)
        if name == "model.layers.1.mlp.up_proj":
            arrays["qweight"].reshape(-1)[5] ^= 1 << 9
        return arrays

    monkeypatch.setattr("fewbit.checkpoints.awq.encoded", flipped)
    with pytest.raises(CheckpointError, match=r"other values of model\.layers\.1\.mlp\.up_proj than"):
        fb.convert(tmp_path / "0", tmp_path / "1", "awq")
    assert names(tmp_path) == ["0"]


def test_a_module_of_ones_own_is_converted_by_the_names_of_its_tensors(tmp_path):
    torch.manual_seed(0)
    recipe = fb.Recipe([fb.Rule("0", weight="int4 g32"), fb.keep("1")])
    fb.quantize(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 3)), recipe, to="gptq").save(tmp_path / "0")
    for number, to in enumerate(["awq", "compressed-tensors", "gptq"]):
        fb.convert(tmp_path / str(number), tmp_path / str(number + 1), to)
    assert digests(tmp_path / "3") == digests(tmp_path / "0")


WRONG = {
    "a float model": (None, "awq", PlanError, "not quantized; use"),
    "no such layout": ([fb.Rule(kind="linear", weight="int4 g32")], "gtpq", RecipeError, "did you mean 'gptq'"),
    "a runtime": ([fb.Rule(kind="linear", weight="int4 g32")], "ort-cpu", RecipeError, "unknown checkpoint format"),
    "groups of two sizes": (
        [fb.Rule(".*up_proj", weight="int4 g32"), fb.Rule(kind="linear", weight="int4 g64")], "awq", CheckpointError,
        "an AWQ folder has one group size for all its layers"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_converted_at_all_says_why(tmp_path, case, wide_llama):
    rules, to, kind, message = WRONG[case]
    if rules is None:
        wide_llama().save_pretrained(tmp_path / "0")
    else:
        fb.quantize(wide_llama(), fb.Recipe([fb.keep(kind="head"), *rules]), to="gptq").save(tmp_path / "0")
    with pytest.raises(kind, match=re.escape(message)):
        fb.convert(tmp_path / "0", tmp_path / "1", to)
    assert names(tmp_path) == ["0"]


def test_a_file_is_replaced_by_a_file_if_asked(tmp_path, saved):
    saved(tmp_path / "0", "int4 g32", "gptq")
    file = tmp_path / "m.gguf"
    file.write_bytes(b"another model")
    with pytest.raises(CheckpointError, match=r"m\.gguf exists; choose another name or pass overwrite"):
        fb.convert(tmp_path / "0", file, "gguf")
    assert file.read_bytes() == b"another model"
    fb.convert(tmp_path / "0", file, "gguf", overwrite=True)
    assert file.read_bytes()[:4] == b"GGUF"
    assert names(tmp_path) == ["0", "m.gguf"]


def test_nothing_is_replaced_unasked_nor_the_source_itself(tmp_path, saved):
    saved(tmp_path / "0", "int4 g32", "gptq")
    with pytest.raises(CheckpointError, match="exists; choose another name or pass overwrite"):
        fb.convert(tmp_path / "0", tmp_path / "0", "awq")
    with pytest.raises(RecipeError, match="is the model that is read; write to another folder"):
        fb.convert(tmp_path / "0", tmp_path / "0", "awq", overwrite=True)


@pytest.mark.slow
@pytest.mark.parametrize(("text", "kind"), [("int4 g64", "Q4_0"), ("int8 channel", "Q8_0")])
def test_a_folder_becomes_a_gguf_file_of_the_same_values(tmp_path, text, kind):
    import gguf

    rules = [fb.keep(kind="head"), fb.Rule(r".*layers\.0\..*", weight=text)]
    folder = fb.quantize("smollm2", fb.Recipe(rules), dtype="float16").save(tmp_path / "folder")
    told = fb.convert(folder, tmp_path / "m.gguf", "gguf")
    assert all(layer.sqnr is None for layer in told.layers)
    stored = {own.name: own for own in gguf.GGUFReader(tmp_path / "m.gguf").tensors}
    up = stored["blk.0.ffn_up.weight"]
    assert up.tensor_type.name == kind
    expected = weights(folder)["model.layers.0.mlp.up_proj"]
    np.testing.assert_array_equal(gguf.quants.dequantize(up.data, up.tensor_type), expected)
    fb.convert(tmp_path / "m.gguf", tmp_path / "back", "compressed-tensors")
    np.testing.assert_array_equal(weights(tmp_path / "back")["model.layers.0.mlp.up_proj"], expected)
    assert (tmp_path / "back" / "tokenizer.json").is_file()
