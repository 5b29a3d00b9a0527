"""transformers + compressed-tensors load what fewbit writes, bit for bit, and the comparison can fail."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from transformers import AutoModelForCausalLM, CompressedTensorsConfig

import fewbit as fb
from fewbit.presets import PRESETS

# compressed-tensors 0.20 with transformers 5.23 cannot build the packed layout of a zero point in its default mode,
# for files of its own either; dequantizing while loading works.
# Weights in blocks of MX and NVFP4 come out in bfloat16 there, for models of that type alone.
DEFAULT_MODE_FAILS = ("w4a16-asym", "mxfp4a16", "nvfp4a16")
# transformers says that our `dequantize=True` is heeded; that is what it is passed for.
pytestmark = pytest.mark.filterwarnings("ignore:You passed `quantization_config`:UserWarning")
# The layout has no codebooks.
WEIGHT_ONLY = [name for name, (_, given) in PRESETS.items() if given is None and name != "nf4"]
# Casts are plain tensors: test_casts_load.py. Weights in blocks: test_compressed_tensors_versions.py.
WITH_INPUTS = [
    name for name, (_, given) in PRESETS.items() if given and not given.startswith(("fp16", "bf16", "mx", "nv"))
]
#: How much nearer the outputs of both must lie to each other than to those of inputs that are not rounded, in dB. They
#: differ where an input lies within a rounding of float32 from a tie, in fewer than 1 of 10^4 numbers (see
#: test_compressed_tensors_rounding.py), and there by a step: a hundredth of the power of rounding leaves room for a few
#: of them. In a deeper model they multiply until nothing is left in common.
NEARER = 20.0
TYPES = ("float32", "bfloat16", "float16")


@pytest.fixture(scope="module")
def saved(small_llama):
    """Quantize a small Llama, and save it."""

    def made(tmp_path, recipe, dtype=torch.float32):
        batches = [torch.arange(48)[None], torch.arange(47, -1, -1)[None]]  # for presets that calibrate
        model = small_llama(dtype, hidden_size=96, intermediate_size=160, tie_word_embeddings=True)
        result = fb.quantize(model, recipe, to="compressed-tensors", calibration=batches)
        return result, result.save(tmp_path / "model")

    return made


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
def test_every_preset_loads_bit_equal_when_dequantized(tmp_path, preset, dtype, saved):
    dtype = getattr(torch, dtype)
    result, path = saved(tmp_path, preset, dtype)
    assert len(result.plan.quantized) == 14
    assert differing(result, loaded(path, dtype, dequantize=True), dtype) == []


@pytest.mark.parametrize("preset", [name for name in WEIGHT_ONLY if name not in DEFAULT_MODE_FAILS])
def test_every_symmetric_preset_loads_bit_equal_and_computes_the_same_in_the_default_mode(tmp_path, preset, saved):
    result, path = saved(tmp_path, preset)
    model = loaded(path, torch.float32, dequantize=False)
    assert differing(result, model, torch.float32) == []
    tokens = torch.arange(20)[None]
    with torch.no_grad():
        assert torch.equal(model(tokens).logits, result.model(tokens).logits)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("preset", WITH_INPUTS)
def test_every_preset_with_rounded_inputs_loads_bit_equal_weights_and_ranges(tmp_path, preset, dtype, saved):
    dtype = getattr(torch, dtype)
    result, path = saved(tmp_path, preset, dtype)
    model = loaded(path, dtype, dequantize=False)
    assert differing(result, model, dtype) == []
    for quantized in result.plan.quantized:
        theirs = model.get_submodule(quantized.layer.name)
        given = theirs.quantization_scheme.input_activations
        assert (given.num_bits, given.symmetric) == (quantized.input.format.bits, quantized.input.symmetric)
        assert (given.strategy, given.dynamic) == (quantized.input.granularity.name, not quantized.input.static)
        if quantized.input.static:
            ours = result.model.get_submodule(quantized.layer.name).input.activation
            assert theirs.input_scale.float() == ours.scale
            assert ours.zero_point is None or theirs.input_zero_point == ours.zero_point


def decibels(reference, other):
    return float(10 * torch.log10(reference.square().sum() / (reference - other).square().sum()))


def agreement(result, path):
    """How much nearer transformers' outputs lie to fewbit's than those of inputs that are not rounded, in dB."""
    tokens = torch.arange(40)[None]
    models = result.model, loaded(path, torch.float32, dequantize=False), loaded(path, torch.float32, dequantize=True)
    with torch.no_grad():
        ours, theirs, unrounded = (model(tokens).logits.double() for model in models)
    return decibels(ours, theirs) - decibels(ours, unrounded)


OTHER_INPUTS = (
    ("int8", "int8 tensor"), ("int8", "int8 g32"), ("int8 asym", "int4"), ("e4m3", "e4m3 g32"), ("e4m3", "int8"),
    ("int8 channel asym", "int8 static percentile"), ("int8", "int8 static sym"), ("int4 g32", "e4m3"),
    ("int8", "mxfp4"), ("e4m3", "mxfp8"), ("int8", "nvfp4 static"),
)  # fmt: skip


@pytest.mark.parametrize("what", [*WITH_INPUTS, *OTHER_INPUTS], ids=str)
def test_transformers_computes_with_rounded_inputs_what_fewbit_computes(tmp_path, what, saved):
    if isinstance(what, tuple):
        weight, given = what
        what = fb.Recipe([fb.keep(kind="head"), fb.Rule(kind="linear", weight=weight, input=given)])
    result, path = saved(tmp_path, what)
    assert agreement(result, path) > NEARER


@pytest.mark.parametrize("preset", WITH_INPUTS)
def test_the_comparison_of_outputs_notices_inputs_that_are_not_rounded(tmp_path, preset, saved):
    """A negative control; it also shows that `dequantize=True` leaves out the rounding, transformers' own choice."""
    result, path = saved(tmp_path, preset)
    configuration = json.loads((path / "config.json").read_text())
    group = configuration["quantization_config"]["config_groups"]["group_0"]
    group["input_activations"] = None
    (path / "config.json").write_text(json.dumps(configuration))
    assert agreement(result, path) == 0.0


NVFP4_INPUTS = fb.Recipe([fb.keep(kind="head"), fb.Rule(kind="linear", weight="int8", input="nvfp4 static")])


@pytest.mark.parametrize(
    ("recipe", "tensor"),
    [("w8a8-static", "input_scale"), ("fp8-static", "input_scale"), (NVFP4_INPUTS, "input_global_scale")],
    ids=["w8a8-static", "fp8-static", "nvfp4 static"],
)
def test_the_comparison_of_outputs_notices_one_wrong_range(tmp_path, recipe, tensor, saved):
    """The other negative control: the range of a single layer is half as large again."""
    result, path = saved(tmp_path, recipe)
    file = path / "model.safetensors"
    content = bytearray(file.read_bytes())
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    begin, end = header[f"model.layers.1.mlp.up_proj.{tensor}"]["data_offsets"]
    scale = np.frombuffer(content, np.float32, 1, 8 + length + begin) * np.float32(1.5)
    content[8 + length + begin : 8 + length + end] = scale.tobytes()
    file.write_bytes(content)
    assert agreement(result, path) < NEARER


def test_transformers_has_the_fixed_scale_of_scales_and_layers_with_one_input_share_it(tmp_path, saved):
    result, path = saved(tmp_path, NVFP4_INPUTS)
    model = loaded(path, torch.float32, dequantize=False)
    units = {}
    for quantized in result.plan.quantized:
        theirs = model.get_submodule(quantized.layer.name)
        given = theirs.quantization_scheme.input_activations
        assert (given.strategy, given.dynamic, given.group_size) == ("tensor_group", "local", 16)
        ours = result.model.get_submodule(quantized.layer.name).input.activation
        assert theirs.input_global_scale * ours.scale == 1.0
        units[quantized.layer.name] = float(ours.scale)
    for layer in (0, 1):
        attention, mlp = f"model.layers.{layer}.self_attn", f"model.layers.{layer}.mlp"
        assert len({units[f"{attention}.{name}_proj"] for name in "qkv"}) == 1
        assert units[f"{mlp}.gate_proj"] == units[f"{mlp}.up_proj"]


OTHER_SCHEMES = (
    "int1 g16 asym", "int2 g32", "int3 g32 asym", "int4 tensor asym", "int4 narrow g32", "int5", "int6 tensor",
    "int7 g16", "int8 asym", "e4m3 tensor",
)  # fmt: skip


@pytest.mark.parametrize("scheme", OTHER_SCHEMES)
def test_other_schemes_load_bit_equal_too(tmp_path, scheme, saved):
    result, path = saved(tmp_path, fb.Recipe([fb.Rule(kind="linear", weight=scheme)]))
    assert differing(result, loaded(path, torch.float32, dequantize=True), torch.float32) == []


def test_a_mixed_recipe_loads_bit_equal_in_the_default_mode(tmp_path, saved):
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


def test_a_quantized_head_is_untied_and_loads_bit_equal(tmp_path, saved):
    recipe = fb.Recipe([fb.keep(kind="embedding"), fb.Rule(r".*", weight="int8")])
    result, path = saved(tmp_path, recipe)
    assert result.plan.unties
    assert json.loads((path / "config.json").read_text())["tie_word_embeddings"] is False
    model = loaded(path, torch.float32, dequantize=False)
    assert differing(result, model, torch.float32) == []
    assert torch.equal(model.model.embed_tokens.weight, result.model.model.embed_tokens.weight)


def test_kept_tensors_load_equal(tmp_path, saved):
    result, path = saved(tmp_path, "w4a16", torch.bfloat16)
    model = loaded(path, torch.bfloat16, dequantize=True)
    assert torch.equal(model.model.embed_tokens.weight, result.model.model.embed_tokens.weight)
    assert torch.equal(model.model.norm.weight, result.model.model.norm.weight)
    assert model.lm_head.weight is model.model.embed_tokens.weight


@pytest.mark.parametrize("tensor", ["weight_packed", "weight_scale"])
def test_the_comparison_notices_a_single_wrong_word(tmp_path, tensor, saved):
    """The negative control of this file."""
    result, path = saved(tmp_path, "w4a16")
    file = path / "model.safetensors"
    tensors = {name: np.array(array) for name, array in load_file(file).items()}
    name = "model.layers.1.mlp.up_proj"
    tensors[f"{name}.{tensor}"].view(np.int32).reshape(-1)[7] ^= 1 << 20
    save_file(tensors, file, metadata={"format": "pt"})
    assert differing(result, loaded(path, torch.float32, dequantize=True), torch.float32) == [name]


def test_compressed_tensors_agrees_on_what_the_scheme_is(tmp_path, saved):
    from compressed_tensors.quantization import QuantizationConfig

    _, path = saved(tmp_path, "w4a16-asym")
    stored = json.loads((path / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(stored)
    weights = config.config_groups["group_0"].weights
    assert (weights.num_bits, weights.symmetric, weights.group_size) == (4, False, 32)
    assert config.ignore == ["lm_head"]


def test_a_quantized_embedding_is_refused_because_transformers_cannot_run_it(tmp_path, small_llama):
    recipe = fb.Recipe([fb.Rule(kind="embedding", weight="int8")])
    with pytest.raises(fb.FewbitError, match=r"model\.embed_tokens: .* this one is of class Embedding; keep it"):
        fb.quantize(small_llama(), recipe, to="compressed-tensors")
    with pytest.raises(fb.FewbitError, match=r"model\.embed_tokens: .* keep it"):
        fb.quantize(small_llama(), recipe).save(tmp_path / "model")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("transform", ["smoothquant"])
def test_a_rescaled_model_is_a_folder_like_any_other(tmp_path, transform, saved):
    rules = [fb.keep(kind="head"), fb.Rule(kind="linear", weight="int8 channel", input="int8 token sym")]
    result, path = saved(tmp_path, fb.Recipe(rules, transforms=[transform]))
    model = loaded(path, torch.float32, dequantize=True)
    assert differing(result, model, torch.float32) == []
    gains = {name: own for name, own in model.named_parameters() if "layernorm" in name}
    assert len(gains) == 4
    assert all(torch.equal(own, result.model.get_parameter(name)) for name, own in gains.items())
    first = gains["model.layers.0.input_layernorm.weight"]
    assert not torch.equal(first, torch.ones_like(first))  # what it was
