"""Fixed ranges of key-value caches in folders: written, read back, refused, and as transformers uses them."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, DynamicCache

import fewbit as fb
from fewbit.errors import CheckpointError, NotYetError, PlanError
from fewbit.frontends.torch.key_value_cache import key_value_cache

STATIC = (
    "int8 tensor static sym", "int8 tensor static", "e4m3 tensor static", "int4 tensor static sym",
    "int8 channel static sym", "int8 channel static", "e4m3 channel static",
)  # fmt: skip
TOKENS = torch.arange(40)[None]


@pytest.fixture(scope="module")
def quantized(small_llama):
    """Quantize a Llama whose attention scores lie apart."""

    def made(dtype=torch.float32):
        recipe = fb.Recipe([fb.keep(kind="head"), fb.Rule(kind="linear", weight="int8")])
        model = small_llama(dtype, vocab_size=64, initializer_range=0.2)
        return fb.quantize(model, recipe, to="compressed-tensors", evaluation=[TOKENS])

    return made


def cache_of(result, text, **options):
    draw = torch.Generator().manual_seed(1)
    return key_value_cache(result.model, text, [torch.randint(0, 64, (2, 24), generator=draw)], **options)


def logits(model, cache):
    """Return what comes out over a cache that was filled in two steps."""
    with torch.no_grad():
        model(TOKENS[:, :30], past_key_values=cache, use_cache=True)
        return model(TOKENS[:, 30:], past_key_values=cache, use_cache=True).logits.double()


def decibels(reference, other):
    return float(10 * torch.log10(reference.square().sum() / (reference - other).square().sum()))


@pytest.fixture(scope="module")
def made(tmp_path_factory, quantized):
    """A folder with ranges by tensor and one by head, asymmetric; tests must not change them."""
    root = tmp_path_factory.mktemp("made")
    for name, text in {"tensor": "int8 tensor static", "head": "int8 channel static sym"}.items():
        result = quantized()
        result.save(root / name, cache=cache_of(result, text))
    return root


@pytest.mark.parametrize("text", STATIC)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_is_read_rounds_as_what_was_written_and_is_written_again_as_the_same_bytes(
    tmp_path, text, dtype, quantized
):
    result = quantized(getattr(torch, dtype))
    cache = cache_of(result, text, dtype=dtype)
    result.save(tmp_path / "out", cache=cache)
    loaded = fb.load(tmp_path / "out")
    assert len(loaded.cache.layers) == 2
    for ours, theirs in zip(cache.layers, loaded.cache.layers, strict=True):
        for before, after in zip(ours.roundings, theirs.roundings, strict=True):
            assert after.scheme == before.scheme
            assert torch.equal(after.scale, before.scale)
            assert (before.zero_point is None) == (after.zero_point is None) == ("sym" in text or "e4m3" in text)
            assert before.zero_point is None or torch.equal(after.zero_point, before.zero_point)
    assert torch.equal(logits(loaded.model, loaded.cache), logits(loaded.model, cache_like(cache)))
    loaded.save(tmp_path / "again")
    for file in ("config.json", "model.safetensors"):
        assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "again" / file).read_bytes()


def cache_like(cache):
    """Return an empty cache of the same roundings."""
    return type(cache)([type(layer)(*layer.roundings) for layer in cache.layers])


@pytest.mark.parametrize("text", STATIC)
def test_transformers_rounds_keys_and_values_as_fewbit_does(tmp_path, text, quantized):
    """They differ where a number lies within a rounding of float32 from a tie; unrounded caches are the control."""
    result = quantized()
    cache = cache_of(result, text)
    result.save(tmp_path / "out", cache=cache)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    ours, theirs = logits(result.model, cache), logits(model, DynamicCache(config=model.config))
    unrounded = logits(result.model, DynamicCache(config=model.config))
    assert decibels(ours, theirs) > decibels(ours, unrounded) + 20.0
    for place, layer in enumerate(cache.layers):
        attention = model.model.layers[place].self_attn
        for side, own in zip("kv", layer.roundings, strict=True):
            assert torch.equal(getattr(attention, f"{side}_scale").flatten(), own.scale.flatten())


def test_the_configuration_says_what_the_ranges_are_for(made):
    by_tensor, by_head = (
        json.loads((made / name / "config.json").read_text())["quantization_config"]["kv_cache_scheme"]
        for name in ("tensor", "head")
    )
    common = {"num_bits": 8, "type": "int", "group_size": None, "dynamic": False}
    assert by_tensor == {**common, "symmetric": False, "strategy": "tensor"}
    assert by_head == {**common, "symmetric": True, "strategy": "attn_head"}
    stored = load_file(made / "head" / "model.safetensors")
    assert stored["model.layers.0.self_attn.k_scale"].shape == (2, 1, 1)


def test_a_model_without_ranges_has_no_cache(tmp_path, quantized):
    quantized().save(tmp_path / "out")
    assert fb.load(tmp_path / "out").cache is None


REFUSED = {
    "int8": "stores fixed ranges of caches, and 'int8 token asym' finds them as it runs; use 'int8 tensor static sym'",
    "int8 tensor": "stores fixed ranges of caches, and 'int8 tensor asym' finds them as it runs",
    "uint8 tensor static": "has no layout for a cache in 'uint8 tensor asym static'; use 'int8 tensor static sym'",
    "e5m2 tensor static": "has no layout for a cache in 'e5m2 tensor static'",
    "int8 narrow tensor static sym": "is narrow; leave out 'narrow'",
}


@pytest.mark.parametrize("text", REFUSED)
def test_a_cache_without_a_place_in_the_layout_is_an_error_before_anything_is_written(tmp_path, text, quantized):
    result = quantized()
    with pytest.raises(PlanError) as caught:
        result.save(tmp_path / "out", cache=cache_of(result, text))
    assert REFUSED[text] in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_has_no_place_for_a_cache(tmp_path, quantized):
    result = quantized()
    with pytest.raises(PlanError, match="ONNX files hold no key-value cache yet, and here is one in 'int8 tensor"):
        result.save(tmp_path / "out.onnx", cache=cache_of(result, "int8 tensor static"))


def test_scales_that_the_type_of_the_file_does_not_hold_are_refused(tmp_path, quantized):
    result = quantized(torch.bfloat16)
    with pytest.raises(CheckpointError, match=r"self_attn: bfloat16 does not hold .* dtype='bfloat16'\)"):
        result.save(tmp_path / "out", cache=cache_of(result, "int8 tensor static", dtype="float32"))
    assert list(tmp_path.iterdir()) == []


NAME = "model.layers.1.self_attn"


def put(**parts):
    def change(tensors):
        tensors.update({f"{NAME}.{part}": tensor for part, tensor in parts.items()})

    return change


def drop(*parts):
    def change(tensors):
        for part in parts:
            del tensors[f"{NAME}.{part}"]

    return change


EVERY = ("k_scale", "k_zero_point", "v_scale", "v_zero_point")
DAMAGE = {
    "no scale of keys": ("tensor", drop("k_scale"), "1.self_attn.k_scale is missing; needed by the kv_cache_scheme"),
    "no scale of values": ("tensor", drop("v_scale"), "1.self_attn.v_scale is missing; needed by the kv_cache_scheme"),
    "no zero point": ("tensor", drop("k_zero_point"), "1.self_attn.k_zero_point is missing; needed by"),
    "nothing of a layer": ("tensor", drop(*EVERY), "do not fit the attentions of the model: model.layers.1.self_attn"),
    "a zero point too many": (
        "head", put(v_zero_point=torch.zeros(2, 1, 1, dtype=torch.int8)),
        "1.self_attn.v_zero_point has no meaning beside the kv_cache_scheme"),
    "scales of another shape": ("tensor", put(k_scale=torch.ones(2)), "k_scale is float32[2]; a cache in"),
    "a scale a channel": ("head", put(k_scale=torch.ones(2, 16)), "k_scale is float32[2, 16]; a cache in"),
    "no heads": ("head", put(v_scale=torch.ones(0, 1, 1)), "v_scale is float32[0, 1, 1]; a cache in"),
    "scales of another type": ("tensor", put(v_scale=torch.ones(1).half()), "v_scale is float16[1]; a cache in"),
    "scales of whole numbers": (
        "tensor", put(k_scale=torch.ones(1, dtype=torch.int32)), "kv_cache_scheme: scale type 'int32' is none of"),
    "a zero point of floats": ("tensor", put(k_zero_point=torch.zeros(1)), "k_zero_point is float32[1]; a cache in"),
    "a scale of 0": ("tensor", put(k_scale=torch.zeros(1)), "its k_scale is 0, not a positive number"),
    "a negative scale": ("head", put(v_scale=-torch.ones(2, 1, 1)), "its v_scale is -1, not a positive number"),
    "a scale that is NaN": ("tensor", put(k_scale=torch.full((1,), float("nan"))), "its k_scale is nan, not a"),
    "a scale without end": ("tensor", put(k_scale=torch.full((1,), float("inf"))), "its k_scale is inf, not a"),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGE)
def test_ranges_that_do_not_fit_are_refused(made, tmp_path, case):
    name, change, message = DAMAGE[case]
    folder = shutil.copytree(made / name, tmp_path / "out")
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as caught:
        fb.load(folder)
    assert message in str(caught.value)


SAID = {
    "nothing": (None, CheckpointError, "has a range of its cache, but quantization_config has no kv_cache_scheme"),
    "a list": ([8], CheckpointError, "kv_cache_scheme of quantization_config is no object but [8]"),
    "each run": ({"dynamic": True}, NotYetError, "kv_cache_scheme has dynamic = True, which this version"),
    "tokens": (
        {"strategy": "token"},
        NotYetError,
        "kv_cache_scheme: 8-bit 'int' by 'token' (group size None) is not read",
    ),
    "a table": ({"strategy": {}}, NotYetError, "kv_cache_scheme: 8-bit 'int' by {} (group size None) is not"),
    "four-bit floats": ({"num_bits": 4, "type": "float"}, NotYetError, "kv_cache_scheme: 4-bit 'float' by 'tensor'"),
    "bits beyond a byte": ({"num_bits": 16}, NotYetError, "kv_cache_scheme: 16-bit 'int' by 'tensor'"),
    "groups": ({"group_size": 16}, NotYetError, "kv_cache_scheme has group_size = 16"),
    "another type of scales": ({"scale_dtype": "torch.uint8"}, NotYetError, "kv_cache_scheme has scale_dtype"),
    "half a symmetry": ({"symmetric": 0}, CheckpointError, "kv_cache_scheme: symmetric = 0 is not true or false"),
    "a float with a zero point": ({"type": "float"}, CheckpointError, "kv_cache_scheme: e4m3 takes no zero point"),
}


@pytest.mark.parametrize("case", SAID)
def test_a_configuration_that_does_not_fit_the_ranges_is_refused(made, tmp_path, case):
    said, kind, message = SAID[case]
    folder = shutil.copytree(made / "tensor", tmp_path / "out")
    config = json.loads((folder / "config.json").read_text())
    own = config["quantization_config"]
    own["kv_cache_scheme"] = own["kv_cache_scheme"] | said if isinstance(said, dict) else said
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(kind) as caught:
        fb.load(folder)
    assert type(caught.value) is kind
    assert message in str(caught.value)


def test_a_scheme_without_any_range_is_refused(made, tmp_path, quantized):
    quantized().save(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    config["quantization_config"]["kv_cache_scheme"] = {"num_bits": 8, "type": "int", "strategy": "tensor"}
    (tmp_path / "out" / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="has a kv_cache_scheme, but no attention has a k_scale"):
        fb.load(tmp_path / "out")
