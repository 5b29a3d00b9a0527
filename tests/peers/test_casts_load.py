"""transformers loads folders with casts as it loads any float model, in the type that holds every number."""

import json

import pytest
import torch
from transformers import AutoModelForCausalLM

import fewbit as fb
from fewbit.sources.checkpoint import CheckpointFolder

TIED = {"tie_word_embeddings": True}
TOKENS = torch.arange(40)[None]


@pytest.mark.parametrize("preset", ["fp16", "bf16"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_weights_are_those_of_the_cast_and_the_model_has_the_type_that_holds_them(tmp_path, preset, dtype, small_llama):
    result = fb.quantize(
        small_llama(getattr(torch, dtype), **TIED),
        preset,
        to="compressed-tensors",
        evaluation=[TOKENS],
    )
    path = result.save(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(path)  # the type that config.json says
    own = {"fp16": "float16", "bf16": "bfloat16"}[preset]
    assert str(model.dtype) == f"torch.{dtype if dtype == own else 'float32'}"
    assert len(result.plan.quantized) == 14
    for quantized in result.plan.quantized:
        name = quantized.layer.name
        ours = result.model.get_submodule(name).qtensor.dequantize()
        assert torch.equal(model.get_submodule(name).weight.float(), ours)
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_another_type_would_not_hold_what_was_saved(tmp_path, small_llama):
    # The negative control, and why config.json says float32: fp16 has three bits more than bfloat16.
    result = fb.quantize(small_llama(**TIED), "fp16", to="compressed-tensors", dtype="bfloat16")
    name = result.plan.quantized[0].layer.name
    model = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "out"), dtype=torch.bfloat16)
    ours = result.model.get_submodule(name).qtensor.dequantize()
    assert not torch.equal(model.get_submodule(name).weight.float(), ours)


def test_fewbit_loads_it_with_inputs_cast_as_they_were(tmp_path, small_llama):
    result = fb.quantize(small_llama(**TIED), "bf16", to="compressed-tensors", evaluation=[TOKENS])
    path = result.save(tmp_path / "out")
    loaded = fb.load(path)
    theirs = AutoModelForCausalLM.from_pretrained(path)
    with torch.no_grad():
        ours, again, plain = (model(TOKENS).logits for model in (result.model, loaded.model, theirs))
    assert torch.equal(again, ours)
    # transformers knows of no inputs that are cast: near, and not equal.
    assert not torch.equal(plain, ours)
    torch.testing.assert_close(plain, ours, rtol=0.05, atol=0.05 * float(ours.abs().max()))
    assert isinstance(loaded.source, CheckpointFolder)


def test_beside_quantized_layers_casts_are_float_ones(tmp_path, small_llama):
    recipe = fb.Recipe([
        fb.Rule(r".*\.mlp\..*", weight="int8"), fb.Rule(r".*\.self_attn\..*", weight="fp16", input="fp16"),
    ])  # fmt: skip
    result = fb.quantize(small_llama(**TIED), recipe, to="compressed-tensors", evaluation=[TOKENS])
    path = result.save(tmp_path / "out")
    model = AutoModelForCausalLM.from_pretrained(path)
    model(TOKENS)  # the first forward decompresses
    for quantized in result.plan.quantized:
        name = quantized.layer.name
        ours = result.model.get_submodule(name).qtensor.dequantize()
        assert torch.equal(model.get_submodule(name).weight, ours)


def test_a_folder_with_a_kept_layer_is_loaded_in_float32_where_it_does_not_overflow(tmp_path, small_llama):
    model = small_llama(**TIED)
    with torch.no_grad():
        for name, factor in (("gate_proj", 300.0), ("up_proj", 300.0), ("down_proj", 10_000.0)):
            model.model.layers[1].mlp.get_submodule(name).weight.mul_(factor)
    result = fb.quantize(model, "fp16", to="compressed-tensors", dtype="float16", evaluation=[TOKENS])
    kept = [layer.name for layer in result.report.layers if layer.overflow]
    assert kept == ["model.layers.1.mlp.down_proj"]
    path = result.save(tmp_path / "out")
    assert json.loads((path / "config.json").read_text())["dtype"] == "float32"
    in_half = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float16)
    with torch.no_grad():
        assert torch.isfinite(AutoModelForCausalLM.from_pretrained(path)(TOKENS).logits).all()
        assert torch.isfinite(fb.load(path).model(TOKENS).logits).all()
        assert not torch.isfinite(in_half(TOKENS).logits).all()  # the negative control
