"""transformers + compressed-tensors load what fewbit writes, bit for bit, and the comparison can fail."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig, LlamaConfig, LlamaForCausalLM

import fewbit as fb
from fewbit.errors import PlanError
from fewbit.presets import PRESETS

# compressed-tensors 0.20 with transformers 5.23 cannot build the packed layout of a zero point in its default mode,
# for files of its own either; dequantizing while loading works.
DEFAULT_MODE_FAILS = ("w4a16-asym",)
# transformers says that our `dequantize=True` is heeded; that is what it is passed for.
pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
WEIGHT_ONLY = [name for name, (_, given) in PRESETS.items() if given is None]
TYPES = ("float32", "bfloat16", "float16")


def small_llama(dtype=torch.float32):
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=320, hidden_size=96, intermediate_size=160, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True, dtype=dtype,
    )  # fmt: skip
    return LlamaForCausalLM(config).to(dtype).eval()


def saved(tmp_path, recipe, dtype=torch.float32):
    batches = [torch.arange(48)[None], torch.arange(47, -1, -1)[None]]  # for presets that calibrate
    result = fb.quantize(small_llama(dtype), recipe, to="compressed-tensors", calibration=batches)
    return result, result.save(tmp_path / "model")


def loaded(path, dtype, *, dequantize):
    how = {"quantization_config": CompressedTensorsConfig(dequantize=True)} if dequantize else {}
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, **how)
    model(torch.tensor([[1, 2, 3]]))  # the default mode decompresses at the first forward
    return model


def differing(result, model, dtype):
    """Names of the layers whose weights differ in any bit from fewbit's own dequantized ones."""
    names = []
    for quantized in result.plan.quantized:
        name = quantized.layer.name
        ours = result.model.get_submodule(name).qtensor.dequantize().to(dtype)
        if not torch.equal(model.get_submodule(name).weight, ours):
            names.append(name)
    return names


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("preset", WEIGHT_ONLY)
def test_every_preset_loads_bit_equal_when_dequantized(tmp_path, preset, dtype):
    dtype = getattr(torch, dtype)
    result, path = saved(tmp_path, preset, dtype)
    assert len(result.plan.quantized) == 14
    assert differing(result, loaded(path, dtype, dequantize=True), dtype) == []


@pytest.mark.parametrize("preset", [name for name in WEIGHT_ONLY if name not in DEFAULT_MODE_FAILS])
def test_every_symmetric_preset_loads_bit_equal_and_computes_the_same_in_the_default_mode(tmp_path, preset):
    result, path = saved(tmp_path, preset)
    model = loaded(path, torch.float32, dequantize=False)
    assert differing(result, model, torch.float32) == []
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, result.model(tokens).logits)


@pytest.mark.parametrize("preset", sorted(set(PRESETS) - set(WEIGHT_ONLY)))
def test_what_rounds_inputs_is_refused_until_the_writer_knows_it(preset):
    with pytest.raises(PlanError, match="compressed-tensors of this version holds weights only; leave out `input`"):
        fb.quantize(small_llama(), preset, to="compressed-tensors", calibration=[torch.arange(20)[None]])


OTHER_SCHEMES = (
    "int1 g16 asym", "int2 g32", "int3 g32 asym", "int4 tensor asym", "int4 narrow g32", "int5", "int6 tensor",
    "int7 g16", "int8 asym", "e4m3 tensor",
)  # fmt: skip


@pytest.mark.parametrize("scheme", OTHER_SCHEMES)
def test_other_schemes_load_bit_equal_too(tmp_path, scheme):
    result, path = saved(tmp_path, fb.Recipe([fb.Rule(kind="linear", weight=scheme)]))
    assert differing(result, loaded(path, torch.float32, dequantize=True), torch.float32) == []


def test_a_mixed_recipe_loads_bit_equal_in_the_default_mode(tmp_path):
    recipe = fb.Recipe(
        [
            fb.keep(r".*layers\.0\.self_attn\.o_proj"),
            fb.Rule(r".*down_proj", weight="int8"),
            fb.Rule(r".*v_proj", weight="e4m3"),
            fb.Rule(kind="linear", weight="int4 g32"),
        ]
    )
    result, path = saved(tmp_path, recipe)
    model = loaded(path, torch.float32, dequantize=False)
    assert len(result.plan.quantized) == 13
    assert differing(result, model, torch.float32) == []


def test_a_quantized_head_is_untied_and_loads_bit_equal(tmp_path):
    recipe = fb.Recipe([fb.keep(kind="embedding"), fb.Rule(r".*", weight="int8")])
    result, path = saved(tmp_path, recipe)
    assert result.plan.unties
    assert json.loads((path / "config.json").read_text())["tie_word_embeddings"] is False
    model = loaded(path, torch.float32, dequantize=False)
    assert differing(result, model, torch.float32) == []
    assert torch.equal(model.model.embed_tokens.weight, result.model.model.embed_tokens.weight)


def test_kept_tensors_load_equal(tmp_path):
    result, path = saved(tmp_path, "w4a16", torch.bfloat16)
    model = loaded(path, torch.bfloat16, dequantize=True)
    assert torch.equal(model.model.embed_tokens.weight, result.model.model.embed_tokens.weight)
    assert torch.equal(model.model.norm.weight, result.model.model.norm.weight)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("tensor", ["weight_packed", "weight_scale"])
def test_the_comparison_notices_a_single_wrong_word(tmp_path, tensor):
    """The negative control of this file."""
    result, path = saved(tmp_path, "w4a16")
    file = path / "model.safetensors"
    tensors = {name: np.array(array) for name, array in load_file(file).items()}
    name = "model.layers.1.mlp.up_proj"
    tensors[f"{name}.{tensor}"].view(np.int32).reshape(-1)[7] ^= 1 << 20
    save_file(tensors, file, metadata={"format": "pt"})
    assert differing(result, loaded(path, torch.float32, dequantize=True), torch.float32) == [name]


def test_compressed_tensors_agrees_on_what_the_scheme_is(tmp_path):
    from compressed_tensors.quantization import QuantizationConfig

    _, path = saved(tmp_path, "w4a16-asym")
    stored = json.loads((path / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(stored)
    weights = config.config_groups["group_0"].weights
    assert (weights.num_bits, weights.symmetric, weights.group_size) == (4, False, 32)
    assert config.ignore == ["lm_head"]


def test_a_quantized_embedding_is_refused_because_transformers_cannot_run_it(tmp_path):
    recipe = fb.Recipe([fb.Rule(kind="embedding", weight="int8")])
    with pytest.raises(fb.FewbitError, match=r"model\.embed_tokens: .* this one is of class Embedding; keep it"):
        fb.quantize(small_llama(), recipe, to="compressed-tensors")
    with pytest.raises(fb.FewbitError, match=r"model\.embed_tokens: .* keep it"):
        fb.quantize(small_llama(), recipe).save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
