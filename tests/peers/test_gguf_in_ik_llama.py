"""ik_llama.cpp runs what fewbit writes: its logits are those of the dequantized weights, but for what it rounds itself.

llama.cpp rounds the input of every matrix to 8 bits in blocks of 32 or 256. The same is done to the model in torch, and
the engine may be as far from the model with exact inputs as this one is, and half as far again. Rows of K in the order
of transformers, the usual mistake, are five times farther off.
"""

import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch

import fewbit as fb
from fewbit.checkpoints.gguf.tensor_names import file_names
from fewbit.presets import GGUF_PRESETS
from fewbit.sources import open_source

pytestmark = pytest.mark.skipif(find_spec("ik_llama_cpp") is None, reason="needs ik-llama-cpp-python, Linux on x86-64")
ENGINE = Path(__file__).with_name("ik_llama.py")
#: Types whose inputs share scales by 256.
SPANNED = {"Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_XS"}
#: How much farther than what rounding explains the engine may be.
SLACK = 1.5


def run(path, given, result):
    done = subprocess.run(
        [sys.executable, ENGINE, path, given, result], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


def engine_logits(path, tokens):
    given, result = path.with_suffix(".tokens.npy"), path.with_suffix(".logits.npy")
    np.save(given, tokens.numpy())
    run(path, given, result)
    return np.load(result)


def engine_tokens(path, texts):
    given, result = path.with_suffix(".texts.json"), path.with_suffix(".tokens.json")
    given.write_text(json.dumps(texts))
    run(path, given, result)
    return json.loads(result.read_text())


def rounded_inputs(size):
    """Return a hook that rounds the input of a linear layer to 8 bits in blocks, as llama.cpp does.

    Those of 32 have float16 scales, those of 256 that go with the types of such blocks float32.
    """

    def enter(_, arguments):
        given = arguments[0]
        blocks = given.reshape(-1, size)
        scale = blocks.abs().amax(-1, keepdim=True) / 127
        codes = torch.round(blocks / torch.where(scale == 0, 1, scale))
        return (codes * (scale.half().float() if size == 32 else scale)).reshape(given.shape)

    return enter


def blocks_of(source):
    """Return how many numbers share a scale in what each layer of a file is given."""
    kinds = {tensor.name: tensor.kind for tensor in source.header.tensors}
    names = file_names(source.configuration())
    return {name.removesuffix(".weight"): 256 if kinds.get(own) in SPANNED else 32 for name, own in names.items()}


@torch.no_grad()
def deviations(model, tokens, found, blocks=None):
    """Return how far the engine's logits are from the model's, and those of the model with rounded inputs.

    `blocks` are how many numbers share a scale by layer, 32 where nothing is said.
    """
    exact = model(tokens).logits
    hooks = [
        module.register_forward_pre_hook(rounded_inputs((blocks or {}).get(name, 32)))
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear)
    ]
    explained = model(tokens).logits
    for hook in hooks:
        hook.remove()
    whole = float((exact - exact.mean(-1, keepdim=True)).norm())
    return float((torch.from_numpy(found) - exact).norm()) / whole, float((explained - exact).norm()) / whole


#: The engine builds no Gemma 2 and no GPT-2.
FAMILIES = ("llama", "llama tied", "llama biases", "llama linear", "llama yarn", "mistral", "qwen2", "qwen3", "gemma",
            "gemma3", "phi3")  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_a_model_of_each_family_computes_in_the_engine_what_it_does_in_torch(tmp_path, language_model, family):
    model = language_model(family)
    fb.quantize(model, "q8_0", to="gguf", dtype="float32").save(tmp_path / "m.gguf")
    tokens = torch.arange(2, 50)[None]
    found, explained = deviations(_dequantized(model), tokens, engine_logits(tmp_path / "m.gguf", tokens))
    assert found < SLACK * explained + 0.01  # keys and values are float16 besides
    assert explained < 0.1


def test_a_model_in_parts_computes_what_it_does_in_one_file_and_not_without_a_part(tmp_path, language_model):
    result = fb.quantize(language_model("llama"), "q8_0", to="gguf", dtype="float32")
    tokens = torch.arange(2, 50)[None]
    whole = engine_logits(result.save(tmp_path / "m.gguf"), tokens)
    first = result.save(tmp_path / "m.gguf", shard_size=20_000)
    assert first.name.startswith("m-00001-of-")
    assert np.array_equal(engine_logits(first, tokens), whole)
    others = sorted(first.parent.glob("m-*-of-*.gguf"))[1:]
    assert len(others) > 2
    others[1].unlink()
    with pytest.raises(AssertionError, match="failed to load"):
        engine_logits(first, tokens)


def _dequantized(model):
    """Return a model of float layers with the weights of a quantized one."""
    for name, module in list(model.named_modules()):
        if hasattr(module, "qtensor") and type(module).__name__ == "QuantizedLinear":
            linear = torch.nn.Linear(*reversed(module.qtensor.shape), bias=module.bias is not None)
            linear.weight.data = module.qtensor.dequantize()
            if module.bias is not None:
                linear.bias.data = module.bias.data
            model.set_submodule(name, linear)
    return model


def test_rows_of_k_in_the_order_of_transformers_are_found_out(tmp_path, language_model, with_rows_of_halves):
    model = language_model("llama")
    fb.quantize(model, "q8_0", to="gguf", dtype="float32").save(tmp_path / "m.gguf")
    tokens = torch.arange(2, 50)[None]
    wrong = with_rows_of_halves(tmp_path / "m.gguf", heads=2)
    found, explained = deviations(_dequantized(model), tokens, engine_logits(wrong, tokens))
    assert found > 5 * (SLACK * explained + 0.01)


def recipe_of(name):
    """Return a mixture of types, or one type and Q8_0 outside of the blocks; without the minutes of GPTQ."""
    if name in GGUF_PRESETS:
        rules = [fb.Rule(kind=kind, weight=GGUF_PRESETS[name].lower()) for kind in ("linear", "embedding", "head")]
        return fb.Recipe(rules, name=name, adapts=True, mixture=name)
    rules = [fb.Rule(kind="linear", weight=name)]
    return fb.Recipe([*rules, *(fb.Rule(kind=kind, weight="q8_0") for kind in ("embedding", "head"))], name=name)


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """Return the demo model as a file under a recipe, made once."""
    made = {}

    def file(name):
        if name not in made:
            path = tmp_path_factory.mktemp(name) / "m.gguf"
            made[name] = fb.quantize("smollm2", recipe_of(name), to="gguf").save(path)
        return made[name]

    return file


TEXT = (
    "The quick brown fox jumps over the lazy dog. In 1905 a clerk in Bern wrote four papers that changed physics, and"
)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["q8_0", "q4_0", "q4_k_m", "q6_k", "iq4_xs", "q5_0", "iq4_nl", "mxfp4"])
def test_smollm2_computes_in_the_engine_what_it_does_in_torch(smollm2, name):
    path = smollm2(name)
    source = open_source(path)
    tokens = torch.tensor([source.tokenizer()(TEXT)["input_ids"]])  # 28 of them: one call of the engine
    found, explained = deviations(source.load(), tokens, engine_logits(path, tokens), blocks_of(source))
    sys.stdout.write(f"{name}: {found:.4f}, {found / explained:.2f} of what rounded inputs explain\n")
    assert found < SLACK * explained


@pytest.mark.slow
def test_smollm2_with_rows_of_k_in_another_order_is_found_out(smollm2, with_rows_of_halves):
    path = smollm2("q8_0")
    source = open_source(path)
    tokens = torch.tensor([source.tokenizer()(TEXT)["input_ids"]])
    wrong = with_rows_of_halves(path, heads=3)
    found, explained = deviations(source.load(), tokens, engine_logits(wrong, tokens))
    assert found > 5 * SLACK * explained


@pytest.mark.slow
def test_the_tokenizer_of_smollm2_is_carried_over(smollm2):
    path = smollm2("q8_0")
    origin = open_source("smollm2").path
    texts = [TEXT, "12345 apples, 6.7 pears", "<|im_start|>user\nhello<|im_end|>\n", "naïve façade — 漢字 😀\t\n  x"]
    copied = path.with_name("origin.gguf")
    copied.symlink_to(origin)
    assert engine_tokens(path, texts) == engine_tokens(copied, texts)
    assert len(engine_tokens(path, ["12345"])[0]) == 5  # digits one by one, which transformers forgets of this file
