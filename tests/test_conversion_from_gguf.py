"""GGUF files become folders of the same values wherever the layout holds them; the gguf package says what these are."""

import hashlib
import json

import gguf
import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from transformers import AutoConfig, AutoModelForCausalLM

import fewbit as fb
from fewbit.errors import CheckpointError, NotYetError, PlanError, RecipeError
from fewbit.sources.checkpoint import CheckpointFolder

ONE = "model.layers.0."
#: Names in the file and in the model, and how many heads the rows are of.
PLACES = {"blk.0.attn_q": (f"{ONE}self_attn.q_proj", 4), "blk.0.attn_k": (f"{ONE}self_attn.k_proj", 2),
          "blk.0.ffn_down": (f"{ONE}mlp.down_proj", 0), "token_embd": ("model.embed_tokens", 0)}  # fmt: skip


@pytest.fixture(scope="module")
def file(tmp_path_factory, language_model):
    """Return a GGUF file of a small model, made once: its linear layers, and its embedding and head, under schemes."""
    known = {}

    def made(weight, outside=None, family="llama tied", **sizes):
        key = (weight, outside, family, *sizes.items())
        if key not in known:
            rules = [fb.Rule(kind="linear", weight=weight)]
            rules += [fb.Rule(kind=kind, weight=outside) for kind in ("embedding", "head")] if outside else []
            result = fb.quantize(language_model(family, **sizes), fb.Recipe(rules), to="gguf", dtype="float32")
            known[key] = result.save(tmp_path_factory.mktemp("file") / "m.gguf")
        return known[key]

    return made


def values(path):
    """Return the numbers of a folder by the name of the layer."""
    found = {}
    for name, value in CheckpointFolder(path).checkpoint.tensors():
        quantized = isinstance(value, fb.QTensor)
        found[name.removesuffix(".weight")] = value.dequantize() if quantized else np.asarray(value, np.float32)
    return found


def in_neighbours(rows, heads):
    """Return rows of heads in the order of the file: 0 1 2 3 of a head becomes 0 2 1 3."""
    half = rows.shape[0] // heads // 2
    return rows[[2 * half * head + place + part * half for head in range(heads) for place in range(half)
                 for part in (0, 1)]]  # fmt: skip


def require_values_of(path, folder):
    """Compare a folder with what the gguf package decodes from the file, to the bit."""
    theirs = {own.name: gguf.dequantize(own.data, own.tensor_type) for own in gguf.GGUFReader(path).tensors}
    for name in [name for name in theirs if name.endswith(".scale")]:  # of an NVFP4 weight as a whole
        theirs[name.replace(".scale", ".weight")] *= theirs[name]
    ours = values(folder)
    for stored, (name, heads) in PLACES.items():
        expected = theirs[f"{stored}.weight"]
        assert np.array_equal(in_neighbours(ours[name], heads) if heads else ours[name], expected), name
    # The negative control: the rows of K are not those of the file as they stand there.
    assert not np.array_equal(ours[f"{ONE}self_attn.k_proj"], theirs["blk.0.attn_k.weight"])


#: Widths that blocks of every type divide.
WIDE = {"hidden_size": 256, "intermediate_size": 256, "num_hidden_layers": 1}
HELD = [
    ("q4_0", "compressed-tensors", "int4 g32"), ("q4_0", "gptq", "int4 g32"), ("q4_0", "awq", "int4 g32"),
    ("q8_0", "compressed-tensors", "int8 g32"), ("q8_0", "gptq", "int8 g32"),
    ("q5_0", "compressed-tensors", "int5 g32"), ("q5_0", "gptq", "int8 g32"),
    ("iq4_nl", "compressed-tensors", "int8 g32"), ("iq4_nl", "gptq", "int8 g32"),
    ("mxfp4", "compressed-tensors", "mxfp4"), ("nvfp4", "compressed-tensors", "nvfp4"),
    ("q6_k", "compressed-tensors", "int6 g16"), ("q3_k", "compressed-tensors", "int3 g16"),
    ("iq4_xs", "compressed-tensors", "int8 g32"),
]  # fmt: skip


@pytest.mark.parametrize(("weight", "to", "after"), HELD)
def test_blocks_become_integers_of_the_same_values(tmp_path, file, weight, to, after):
    path = file(weight, **WIDE)
    done = fb.convert(path, tmp_path / "folder", to)
    assert done.lossy == ()
    assert {layer.before for layer in done.layers} == {weight}
    assert {layer.after for layer in done.layers} == {after}
    require_values_of(path, tmp_path / "folder")


def test_scales_in_units_of_another_need_float32(tmp_path, file):
    path = file("q6_k", **WIDE)
    with pytest.raises(PlanError, match=r"q_proj: float16 does not hold \d+ of \d+ scales exactly; --lossy rounds"):
        fb.convert(path, tmp_path / "folder", "compressed-tensors", dtype="float16")
    fb.convert(path, tmp_path / "folder", "compressed-tensors")
    scales = load_file(tmp_path / "folder" / "model.safetensors")[f"{ONE}mlp.up_proj.weight_scale"]
    assert scales.dtype == np.float32


LOST = [
    ("q4_1", "gptq", r"q_proj: \d+ of \d+ minimums of q4_1 are no whole multiples of their scales"),
    ("q4_k", "compressed-tensors", r"q_proj: \d+ of \d+ minimums of q4_k are no whole multiples of their scales"),
    ("q6_k", "gptq", r"q_proj: float16 does not hold \d+ of \d+ scales exactly"),
    ("mxfp4", "awq", r"q_proj and 6 more: AWQ has no layout for 'mxfp4'"),
    ("q8_0", "awq", r"q_proj and 6 more: AWQ has no layout for 'int8 g32'"),
]
#: Decibels: 4 bits keep some 20; of int6 in the integers of 8 bits only scales are rounded, in the last of 11 bits.
LEAST = {"q6_k": 65.0}


@pytest.mark.parametrize(("weight", "to", "message"), LOST)
def test_what_a_layout_does_not_hold_is_refused_or_rounded_and_measured(tmp_path, file, weight, to, message):
    path = file(weight, **WIDE)
    with pytest.raises(PlanError, match=rf"model\.layers\.0\.self_attn\.{message}.*lossy"):
        fb.convert(path, tmp_path / "folder", to)
    assert list(tmp_path.iterdir()) == []
    done = fb.convert(path, tmp_path / "folder", to, lossy=True)
    before, after = values(path), values(tmp_path / "folder")
    assert len(done.lossy) == 7
    for layer in done.lossy:
        lost = ((before[layer.name] - after[layer.name]).astype(np.float64) ** 2).sum()
        kept = (before[layer.name].astype(np.float64) ** 2).sum()
        assert layer.sqnr == pytest.approx(10 * np.log10(kept / lost), rel=1e-9)  # sums in another order
        assert layer.sqnr > LEAST.get(weight, 17.0)


@pytest.mark.parametrize("to", ["compressed-tensors", "gptq", "awq"])
def test_a_tied_embedding_in_blocks_becomes_float32_or_rounded_if_asked(tmp_path, file, to):
    path = file("q4_0", "q8_0")
    done = fb.convert(path, tmp_path / "folder", to)
    assert [(own.before, own.after, own.sqnr) for own in done.layers if own.name == "model.embed_tokens"] == [
        ("q8_0", "float32", None)
    ]
    assert len(done.layers) == 15  # the head has the same numbers and is not stored
    require_values_of(path, tmp_path / "folder")
    assert load_file(tmp_path / "folder" / "model.safetensors")["model.embed_tokens.weight"].dtype == np.float32
    done = fb.convert(path, tmp_path / "smaller", to, lossy=True)
    assert [(own.name, own.after) for own in done.lossy] == [("model.embed_tokens", "float16")]
    assert done.lossy[0].sqnr > 65.0  # 11 bits
    loaded = fb.load(tmp_path / "folder").model
    assert torch.equal(loaded.lm_head.weight, loaded.model.embed_tokens.weight)
    with torch.no_grad():
        assert torch.equal(loaded(torch.arange(20)[None]).logits, fb.load(path).model(torch.arange(20)[None]).logits)


@pytest.mark.parametrize(("outside", "to", "after"), [
    ("q8_0", "compressed-tensors", "int8 g32"), ("q8_0", "gptq", "int8 g32"), ("q8_0", "awq", "float32"),
    ("q4_1", "gptq", "float32"), ("q6_k", "compressed-tensors", "int6 g16"), ("q6_k", "gptq", "float32"),
])  # fmt: skip
def test_a_head_of_its_own_stays_in_codes_where_its_scheme_is_held(tmp_path, file, outside, to, after):
    path = file("q4_0", outside, "llama", **WIDE)
    done = {own.name: own for own in fb.convert(path, tmp_path / "folder", to).layers}
    assert (done["lm_head"].before, done["lm_head"].after, done["lm_head"].sqnr) == (outside, after, None)
    assert done["model.embed_tokens"].after == "float32"
    theirs = {own.name: gguf.dequantize(own.data, own.tensor_type) for own in gguf.GGUFReader(path).tensors}
    assert np.array_equal(values(tmp_path / "folder")["lm_head"], theirs["output.weight"])


FAMILIES = ("llama", "llama biases", "mistral", "qwen2", "qwen3", "gemma3", "phi3")


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_each_family_computes_what_its_file_does(tmp_path, file, family):
    path = file("q4_0", family=family)
    fb.convert(path, tmp_path / "folder", "compressed-tensors")
    tokens = torch.arange(2, 40)[None]
    with torch.no_grad():
        expected = fb.load(path).model(tokens).logits
        assert torch.equal(fb.load(tmp_path / "folder").model(tokens).logits, expected)


def test_a_folder_of_gptq_is_the_same_bytes_after_a_way_through_gguf(tmp_path, language_model):
    rules = [fb.keep(kind="head"), fb.Rule(kind="linear", weight="int4 g32")]
    fb.quantize(language_model("llama tied"), fb.Recipe(rules), to="gptq").save(tmp_path / "0")
    fb.convert(tmp_path / "0", tmp_path / "1.gguf", "gguf")
    fb.convert(tmp_path / "1.gguf", tmp_path / "2", "gptq")
    found = [hashlib.sha256((tmp_path / name / "model.safetensors").read_bytes()).hexdigest() for name in ("0", "2")]
    assert found[0] == found[1]
    before, after = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("0", "2"))
    assert before["quantization_config"] == after["quantization_config"]
    # A file says less than a folder, and all that it says is the folder's.
    assert {key: before.get(key, value) for key, value in after.items() if value is not None} | {
        "dtype": "float32"
    } == {key: value for key, value in after.items() if value is not None}


def test_a_file_reads_back_otherwise_and_the_folder_is_removed(tmp_path, file, monkeypatch):
    """The negative control of the check: a bit is lost on the way into the folder."""
    path = file("q4_0")

    def flipped(name, qtensor):
        from fewbit.checkpoints.awq_layer import encoded

        arrays = encoded(name, qtensor)
        if name == f"{ONE}mlp.up_proj":
            arrays["qweight"].reshape(-1)[5] ^= 1 << 9
        return arrays

    monkeypatch.setattr("fewbit.checkpoints.awq.encoded", flipped)
    with pytest.raises(CheckpointError, match=r"other values of model\.layers\.0\.mlp\.up_proj than"):
        fb.convert(path, tmp_path / "folder", "awq")
    assert not (tmp_path / "folder").exists()


def test_transformers_takes_the_configuration_and_computes_with_float_numbers(tmp_path, file):
    """What stays float: the whole model, but for the codes, as transformers reads them."""
    path = file("q4_0", "q8_0")
    fb.convert(path, tmp_path / "folder", "compressed-tensors")
    config = AutoConfig.from_pretrained(tmp_path / "folder")
    assert (config.model_type, str(config.dtype)) == ("llama", "torch.float32")  # what loads every number as it is
    fb.convert(path, tmp_path / "smaller", "compressed-tensors", lossy=True)
    assert str(AutoConfig.from_pretrained(tmp_path / "smaller").dtype) == "torch.float16"
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "folder", dtype="auto")
    ours = fb.load(path).model
    assert torch.equal(loaded.model.embed_tokens.weight, ours.model.embed_tokens.qtensor.dequantize())
    assert torch.equal(loaded.model.norm.weight, ours.model.norm.weight)


WRONG = {
    "a file of floats": (None, "gptq", CheckpointError, "holds no quantized layer; use fewbit quantize"),
    "the same layout": ("q4_0", "gguf", RecipeError, "is a gguf file already; copy it"),
}


def test_the_demo_model_is_its_file_and_the_rotated_one_is_floats(tmp_path):
    with pytest.raises(PlanError, match=r"minimums of q4_1 are no whole multiples of their scales; --lossy rounds"):
        fb.convert("smollm2", tmp_path / "out", "gptq")
    with pytest.raises(PlanError, match="smollm2-rotated is not quantized; use fewbit quantize --to gptq"):
        fb.convert("smollm2-rotated", tmp_path / "out", "gptq")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("case", WRONG)
def test_what_cannot_be_converted_says_why(tmp_path, file, language_model, case):
    weight, to, kind, message = WRONG[case]
    path = file(weight) if weight else tmp_path / "m.gguf"
    if not weight:
        fb.quantize(language_model("llama"), "fp16", to="gguf").save(path)
    with pytest.raises(kind, match=message):
        fb.convert(path, tmp_path / "out", to)
    assert not (tmp_path / "out").exists()


def test_an_architecture_that_is_not_read_is_refused_by_name(tmp_path):
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "mamba")
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    for step in (writer.write_header_to_file, writer.write_kv_data_to_file, writer.write_tensors_to_file):
        step()
    writer.close()
    with pytest.raises(NotYetError, match="a model of the architecture 'mamba'; read are llama"):
        fb.convert(tmp_path / "m.gguf", tmp_path / "out", "gptq")
