"""GGUF files: every tensor decodes by the gguf package to the model's own numbers, and comes back as it was."""

import json

import gguf
import numpy as np
import pytest
import torch

import fewbit as fb
from fewbit.checkpoints.gguf.container import Container, Entry
from fewbit.checkpoints.gguf_header import read_gguf_header
from fewbit.errors import CheckpointError, NotYetError, PlanError, RecipeError
from fewbit.schemes.gguf import scheme_of

Q8_0, Q4_0 = scheme_of("Q8_0"), scheme_of("Q4_0")
FAMILIES = ("llama", "llama tied", "llama biases", "llama 3", "llama linear", "mistral", "qwen2", "qwen3", "gemma",
            "gemma2", "gemma3", "phi3", "gpt2", "gpt2 untied")  # fmt: skip
TOKENS = torch.arange(40)[None]
#: Of three heads' rows: from halves to neighbours.
ORDER = {"q_proj": 4, "k_proj": 2}


def written(model, path, recipe="q8_0", **options):
    result = fb.quantize(model, recipe, to="gguf", **options)
    return result, result.save(path)


def numbers_in(path):
    """Return every tensor of the file as the gguf package decodes it, in NumPy's shape."""
    return {
        tensor.name: gguf.dequantize(tensor.data, tensor.tensor_type).reshape(tuple(tensor.shape)[::-1])
        for tensor in gguf.GGUFReader(path).tensors
    }


def kinds_in(path):
    return {tensor.name: tensor.kind for tensor in read_gguf_header(path).tensors}


def values_in(path):
    return {key: field.contents() for key, field in gguf.GGUFReader(path).fields.items()}


def neighbours(rows, heads):
    """Return rows of heads with the second half between the first: 0 1 2 3 of a head becomes 0 2 1 3."""
    half = rows.shape[0] // heads // 2
    order = [head * 2 * half + place + part * half for head in range(heads) for place in range(half) for part in (0, 1)]
    return rows[order]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_number_of_a_family_is_the_models_in_the_order_and_form_of_llama_cpp(tmp_path, language_model, family):
    model = language_model(family)
    result, path = written(model, tmp_path / "m.gguf", dtype="float32")
    stored = numbers_in(path)
    config = model.config
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.GPT2 if "gpt2" in family else gguf.MODEL_ARCH.LLAMA, 8)
    weights = {f"{q.layer.name}.weight": model.get_submodule(q.layer.name).qtensor.dequantize().numpy()
               for q in result.plan.quantized}  # fmt: skip
    floats = {name: t.numpy() for name, t in model.state_dict().items() if t.dtype == torch.float32}
    columns = {f"{q.layer.name}.weight" for q in result.plan.quantized}
    found = 0
    own = {"gemma2": gguf.MODEL_ARCH.GEMMA2, "gemma3": gguf.MODEL_ARCH.GEMMA3, "phi3": gguf.MODEL_ARCH.PHI3,
           "qwen3": gguf.MODEL_ARCH.QWEN3}  # fmt: skip
    if family in own:
        names = gguf.get_tensor_name_map(own[family], 8)
    for name, numbers in {**floats, **weights}.items():
        place = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if place not in stored:
            assert name == "lm_head.weight"
            assert "output.weight" not in stored
            continue
        module = name.split(".")[-2]
        expected = numbers
        if family.startswith(("llama", "mistral")) and module in ORDER:
            heads = config.num_attention_heads if module == "q_proj" else config.num_key_value_heads
            expected = neighbours(numbers, heads)
        if family.startswith("gemma") and "norm" in module:
            expected = numbers + np.float32(1)
        if name not in columns and "gpt2" in family and module in ("c_attn", "c_proj", "c_fc") and numbers.ndim == 2:
            expected = numbers.T
        assert np.array_equal(stored[place], expected), name
        found += 1
    assert found == len(stored) - sum(name.startswith("rope_") for name in stored)


@pytest.mark.parametrize("family", [name for name in FAMILIES if name != "llama 3"])
def test_a_loaded_file_computes_what_was_saved_to_the_bit(tmp_path, language_model, family):
    result, path = written(language_model(family), tmp_path / "m.gguf", dtype="float32")
    loaded = fb.load(path)
    # A Mistral is a Llama in a file, and computes the same as one.
    assert type(loaded.model).__name__ == type(result.model).__name__.replace("Mistral", "Llama")
    for quantized in result.plan.quantized:
        ours, theirs = (own.get_submodule(quantized.layer.name).qtensor for own in (result.model, loaded.model))
        assert ours.scheme == theirs.scheme
        assert torch.equal(ours.codes, theirs.codes)
        assert torch.equal(ours.dequantize(), theirs.dequantize())
    loaded.model.set_attn_implementation("eager")
    with torch.no_grad():
        expected, found = result.model(TOKENS).logits, loaded.model(TOKENS).logits
    # Norms of Gemma are stored as 1 + w, of which w comes back to within half a unit of 1.
    assert torch.allclose(found, expected, rtol=0, atol=1e-4) if "gemma" in family else torch.equal(found, expected)


def test_an_unpermuted_k_would_be_another_model(tmp_path, language_model):
    """The negative control of what orders rows: put back in the wrong order they compute something else."""
    result, path = written(language_model("llama"), tmp_path / "m.gguf", dtype="float32")
    stored = numbers_in(path)["blk.0.attn_k.weight"]
    own = result.model.model.layers[0].self_attn.k_proj.qtensor.dequantize().numpy()
    assert not np.array_equal(stored, own)
    assert np.array_equal(np.sort(stored, axis=0), np.sort(own, axis=0))


def test_the_factors_of_llama_3_divide_the_frequencies_as_transformers_does(tmp_path, language_model):
    model = language_model("llama 3")
    base = 500.0 ** (-np.arange(0, 16, 2) / 16)
    expected = base / model.model.rotary_emb.inv_freq.numpy()
    _, path = written(model, tmp_path / "m.gguf")
    factors = numbers_in(path)["rope_freqs.weight"]
    assert np.allclose(factors, expected, rtol=1e-6)  # theirs are float32, of a float32 base
    assert factors.min() == 1.0
    assert len(set(factors.tolist())) > 3
    with pytest.raises(NotYetError, match=r"rope_freqs.weight, which no configuration"):
        fb.load(path)


def test_tied_embeddings_are_stored_once_and_counted_once(tmp_path, language_model):
    result, path = written(language_model("llama tied"), tmp_path / "m.gguf")
    kinds = kinds_in(path)
    assert (kinds["token_embd.weight"], "output.weight" in kinds) == ("Q8_0", False)
    assert not result.plan.unties
    head, embedding = result.plan.rows[-1], result.plan.rows[0]
    assert (head.layer.name, head.shared, head.bytes_after) == ("lm_head", "model.embed_tokens", 0)
    assert embedding.bytes_after == 320 * 64 // 32 * 34


def test_scales_below_zero_are_none_that_do_not_fit(language_model):
    result = fb.quantize(language_model("llama"), "q8_0", to="gguf")
    assert any(
        (own.get_submodule(q.layer.name).qtensor.scale < 0).any()
        for own in [result.model]
        for q in result.plan.quantized
    )
    assert "stay float32" not in str(result.report)


def test_tied_layers_under_two_schemes_are_stored_twice(tmp_path, language_model):
    rules = [
        fb.Rule(kind="embedding", weight=Q4_0),
        fb.Rule(kind="head", weight=Q8_0),
        fb.Rule(kind="linear", weight=Q8_0),
    ]
    result, path = written(language_model("llama tied"), tmp_path / "m.gguf", fb.Recipe(rules))
    kinds = kinds_in(path)
    assert (kinds["token_embd.weight"], kinds["output.weight"]) == ("Q4_0", "Q8_0")
    assert result.plan.unties
    loaded = fb.load(path).model
    loaded.set_attn_implementation("eager")
    assert torch.equal(loaded(TOKENS).logits, result.model(TOKENS).logits)


@pytest.mark.parametrize(("dtype", "kind"), [("float32", "F32"), ("float16", "F16"), ("bfloat16", "BF16")])
def test_what_stays_float_has_the_type_of_the_model_and_norms_are_float32(tmp_path, language_model, dtype, kind):
    recipe = fb.Recipe([fb.Rule(r".*down_proj", weight=Q8_0)])
    _, path = written(language_model("llama"), tmp_path / "m.gguf", recipe, dtype=dtype)
    kinds = kinds_in(path)
    assert kinds["blk.0.ffn_up.weight"] == kinds["token_embd.weight"] == kind
    assert kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    assert kinds["blk.1.ffn_down.weight"] == "Q8_0"


def test_casts_are_types_of_the_file(tmp_path, language_model):
    _, path = written(language_model("llama"), tmp_path / "m.gguf", fb.Recipe([fb.Rule(kind="linear", weight="bf16")]))
    assert kinds_in(path)["blk.0.ffn_up.weight"] == "BF16"


@pytest.mark.parametrize(("weight", "number"), [(Q8_0, 7), (Q4_0, 2), ("fp16", 1)])
def test_the_file_type_is_that_of_most_weights(tmp_path, language_model, weight, number):
    _, path = written(language_model("llama"), tmp_path / "m.gguf", fb.Recipe([fb.Rule(kind="linear", weight=weight)]))
    values = values_in(path)
    assert values["general.file_type"] == number
    assert values["general.quantization_version"] == 2


def test_what_llama_cpp_has_to_know_of_a_llama_is_said(tmp_path, language_model):
    _, path = written(language_model("llama"), tmp_path / "a name.gguf")
    values = values_in(path)
    expected = {
        "general.architecture": "llama", "general.type": "model", "general.name": "a name",
        "llama.context_length": 128, "llama.embedding_length": 64, "llama.block_count": 2,
        "llama.feed_forward_length": 96, "llama.attention.head_count": 4, "llama.attention.head_count_kv": 2,
        "llama.rope.freq_base": 50000.0, "llama.rope.dimension_count": 16, "llama.vocab_size": 320,
        "tokenizer.ggml.model": "no_vocab",
    }  # fmt: skip
    assert {key: values[key] for key in expected} == expected
    assert values["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)


def test_writing_twice_gives_the_same_bytes(tmp_path, language_model):
    _, first = written(language_model("llama"), tmp_path / "a" / "m.gguf")
    _, second = written(language_model("llama"), tmp_path / "b" / "m.gguf")
    assert first.read_bytes() == second.read_bytes()


def test_the_report_stands_beside_the_file_and_nothing_else(tmp_path, language_model):
    written(language_model("llama"), tmp_path / "m.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.gguf", "m.report.html", "m.report.json"]
    assert json.loads((tmp_path / "m.report.json").read_text())["recipe"] == "q8_0"


# What cannot be written is refused before any work.


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"weight": "int4 g64"}, "GGUF has no block for 'int4 g64'"),
        ({"weight": Q8_0, "input": "int8"}, "GGUF rounds no inputs, and here is 'int8 token asym'"),
    ],
)
def test_what_has_no_block_is_a_problem_of_the_plan(language_model, rule, message):
    with pytest.raises(PlanError, match=message):
        fb.quantize(language_model("llama"), fb.Recipe([fb.Rule(kind="linear", **rule)]), to="gguf")


def test_a_width_that_blocks_do_not_divide_is_a_problem_of_rules_and_falls_back_in_presets(tmp_path, language_model):
    model = language_model("llama", intermediate_size=100)
    with pytest.raises(PlanError, match="in_features 100 is not a multiple of"):
        fb.quantize(model, fb.Recipe([fb.Rule(kind="linear", weight=Q8_0)]), to="gguf")
    result, path = written(model, tmp_path / "m.gguf")
    assert "Q8_0 -> F16, whose blocks divide the width" in str(result.plan)
    assert kinds_in(path)["blk.0.ffn_down.weight"] == "F16"


@pytest.mark.parametrize(
    ("family", "settings", "message"),
    [
        ("llama", {"hidden_act": "gelu"}, "hidden_act = 'gelu' has no form in GGUF"),
        ("llama", {"mlp_bias": True}, "mlp_bias = True has no form"),
        ("gemma2", {"query_pre_attn_scalar": 99}, "query_pre_attn_scalar = 99 has no key"),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}},
            "'dynamic' have no form",
        ),
    ],
)
def test_what_llama_cpp_would_run_as_another_model_is_refused(tmp_path, language_model, family, settings, message):
    model = language_model(family, **settings)
    with pytest.raises((PlanError, CheckpointError), match=message):
        written(model, tmp_path / "m.gguf")
    assert not list(tmp_path.iterdir())


def test_other_models_are_refused_by_the_plan():
    with pytest.raises(PlanError, match="a module without a configuration of transformers is none that GGUF"):
        fb.quantize(torch.nn.Sequential(torch.nn.Linear(64, 64)), "q8_0", to="gguf")


@pytest.mark.parametrize(("path", "to"), [("out", "gguf"), ("m.gguf", "compressed-tensors"), ("m.gguf", "ort-cpu")])
def test_names_of_files_fit_their_layout(tmp_path, language_model, path, to):
    result = fb.quantize(language_model("llama"), "q8_0", to="gguf")
    with pytest.raises(RecipeError, match="name it so, or choose another layout"):
        result.save(tmp_path / path, to)


def test_what_is_there_stays_unless_it_may_go(tmp_path, language_model):
    path = tmp_path / "m.gguf"
    path.write_bytes(b"something")
    result = fb.quantize(language_model("llama"), "q8_0", to="gguf")
    with pytest.raises(CheckpointError, match=r"m.gguf exists; choose another name"):
        result.save(path)
    assert path.read_bytes() == b"something"
    result.save(path, overwrite=True)
    assert path.read_bytes()[:4] == b"GGUF"


# The file under construction.


def test_a_tensor_that_never_came_or_came_twice_or_too_short_is_an_error(tmp_path):
    entries = [Entry("a.weight", "F32", (2, 4)), Entry("b.weight", "Q8_0", (1, 32))]
    made = Container(tmp_path / "m.gguf", "llama", {"general.type": "model"}, entries, overwrite=False)
    with pytest.raises(CheckpointError, match=r"a.weight has 8 bytes, the manifest says 32"):
        made.put("a.weight", np.zeros(8, np.uint8))
    made.put("b.weight", np.arange(34, dtype=np.uint8))
    with pytest.raises(CheckpointError, match=r"b.weight is not in the manifest, or came twice"):
        made.put("b.weight", np.zeros(34, np.uint8))
    with pytest.raises(CheckpointError, match=r"never came: a.weight"):
        made.close()
    made.abort()
    assert not list(tmp_path.iterdir())


def test_tensors_may_come_in_any_order(tmp_path):
    entries = [Entry("a.weight", "F32", (2, 4)), Entry("b.weight", "Q8_0", (1, 32)), Entry("c.weight", "F16", (3,))]
    made = Container(tmp_path / "m.gguf", "llama", {"list": ["x", "y"], "flag": True}, entries, overwrite=False)
    rng = np.random.default_rng(0)
    content = {own.name: rng.integers(0, 100, own.nbytes).astype(np.uint8) for own in entries}
    for name in ("c.weight", "a.weight", "b.weight"):
        made.put(name, content[name])
    reader = gguf.GGUFReader(made.close())
    for tensor in reader.tensors:
        assert np.array_equal(np.asarray(tensor.data).view(np.uint8).reshape(-1), content[tensor.name])
    assert reader.fields["list"].contents() == ["x", "y"]
    assert reader.fields["flag"].contents() is True
