"""OpenVINO GenAI runs what fewbit writes: the logits and the text of the dequantized weights, in float32.

It reads the minimum of Q4_K as a whole number of steps and its scales as float16; the same is done to the model in
torch. Q5_0, to which widths like the 576 of smollm2 make K-quants fall back, it does not load.
"""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import fewbit as fb
from fewbit.sources import open_source

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
PYTHON = PEERS / "openvinogenai" / "bin" / "python"
NEW = 16
TEXT = "The quick brown fox jumps over the lazy dog. In 1905 a clerk in Bern wrote four papers that changed"
#: Of the logits, as a share of their spread: float32 sums in another order; 6e-6 was seen.
EXACT = 1e-4
#: The same of Q4_K, of which scale and minimum are rounded in an order that is not known; 0.006 was seen.
ROUNDED = 0.012
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (PYTHON.parents[1] / "made-from.txt").is_file(),
        reason="no environment; benchmarks/peers/make.sh openvinogenai makes it",
    ),
]


@pytest.fixture(scope="module")
def prompts():
    tokens = open_source("smollm2").tokenizer()(TEXT)["input_ids"]
    return np.asarray([tokens[:8], tokens[8:16]])


@pytest.fixture(scope="module")
def ran(prompts):
    """Run a file, a process each: its logits (prompts, length, vocabulary), and what the process prints."""

    def run(path):
        given, texts, found = (path.with_suffix(f".{kind}") for kind in ("tokens.npy", "texts.json", "logits.npy"))
        np.save(given, prompts)
        texts.write_text(json.dumps(["12345<|im_end|>"]))
        command = [PYTHON, PEERS / "openvinogenai_generate.py", "--model", path, "--tokens", given, "--new", str(NEW)]
        done = subprocess.run(
            [*command, "--logits", found, "--texts", texts], check=False, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return torch.from_numpy(np.load(found)), json.loads(done.stdout.splitlines()[-1])

    return run


@torch.no_grad()
def distance(found, model, prompts):
    """Return how far logits are from those of `model`, as a share of their spread."""
    own = model(torch.from_numpy(prompts)).logits
    return float((found - own).norm() / (own - own.mean(-1, keepdim=True)).norm())


def text_of(model, prompts):
    settings = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "pad_token_id": 0}
    return [model.generate(torch.from_numpy(row)[None], **settings)[0, len(row) :].tolist() for row in prompts]


@pytest.fixture(scope="module")
def smollm2(tmp_path_factory):
    """Return the demo model as a file under one type inside of its blocks, made once."""
    made = {}

    def file(weight):
        if weight not in made:
            rules = [fb.Rule(kind="linear", weight=weight)]
            rules += [fb.Rule(kind=kind, weight="q8_0") for kind in ("embedding", "head")]
            path = tmp_path_factory.mktemp(weight) / "m.gguf"
            made[weight] = fb.quantize("smollm2", fb.Recipe(rules, name=weight), to="gguf").save(path)
        return made[weight]

    return file


@pytest.mark.parametrize("weight", ["q8_0", "q4_0"])
def test_smollm2_has_the_logits_and_the_text_that_it_has_in_torch(smollm2, ran, prompts, weight):
    path = smollm2(weight)
    logits, said = ran(path)
    model = open_source(path).load()
    assert distance(logits, model, prompts) < EXACT
    assert said["tokens"] == text_of(model, prompts)
    assert said["texts"] == [[33, 34, 35, 36, 37, 2]]  # digits one by one, which transformers forgets of this file


def test_smollm2_with_rows_of_k_in_another_order_is_found_out(smollm2, ran, prompts, with_rows_of_halves):
    path = smollm2("q8_0")
    logits, said = ran(with_rows_of_halves(path, heads=3))
    model = open_source(path).load()
    assert distance(logits, model, prompts) > 1000 * EXACT
    assert said["tokens"] != text_of(model, prompts)


def wide_llama(folder):
    """Save a Llama of random numbers whose widths are multiples of 256, with the tokenizer of smollm2."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152, hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=256, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
    )  # fmt: skip
    LlamaForCausalLM(config).float().save_pretrained(folder)
    for name, content in open_source("smollm2").companions().items():
        if name != "config.json":
            (folder / name).write_bytes(content)
    return folder


def as_read(qtensor):
    """Return the weight that OpenVINO makes of a QTensor: (code - zero) * scale, scale and zero rounded."""
    scale, minimum = (part.half().float() if part is not None else None
                      for part in (qtensor.scale_values(), qtensor.minimum_values()))  # fmt: skip
    if minimum is None:
        return qtensor.dequantize()
    zero = torch.round(-minimum / torch.where(scale == 0, 1, scale)).clamp(0, 15)
    codes = qtensor.codes.reshape(*scale.shape, -1).float()
    return ((codes - zero[..., None]) * scale[..., None]).reshape(qtensor.shape)


def with_weights_as_read(model):
    for name, module in list(model.named_modules()):
        if hasattr(module, "qtensor"):
            weight = as_read(module.qtensor)
            plain = (
                torch.nn.Embedding(*weight.shape) if "embed" in name else torch.nn.Linear(*weight.T.shape, bias=False)
            )
            plain.weight.data = weight
            model.set_submodule(name, plain)
    return model


@pytest.fixture(scope="module", params=["q4_k", "q4_k_m"])
def wide(request, tmp_path_factory):
    """Return a file with the type in every tensor, or the mixture, in which values and the head are Q6_K."""
    folder = tmp_path_factory.mktemp(request.param)
    rules = [fb.Rule(kind=kind, weight="q4_k") for kind in ("linear", "embedding", "head")]
    mixture = request.param if request.param == "q4_k_m" else None
    recipe = fb.Recipe(rules, adapts=mixture is not None, mixture=mixture)
    return fb.quantize(wide_llama(folder), recipe, to="gguf", dtype="float32").save(folder / "m.gguf")


def test_q4_k_has_the_logits_of_what_openvino_reads_of_it(wide, ran, prompts):
    logits, _ = ran(wide)
    exact, read = fb.load(wide).model, with_weights_as_read(fb.load(wide).model)
    near, far = distance(logits, read, prompts), distance(logits, exact, prompts)
    sys.stdout.write(f"{near:.4f} from the weights as read, {far:.4f} from those of the file\n")
    assert near < ROUNDED
    assert far > ROUNDED  # its minimums are not whole


def test_q4_k_with_rows_of_k_in_another_order_is_found_out(wide, ran, prompts, with_rows_of_halves):
    logits, _ = ran(with_rows_of_halves(wide, heads=2))
    assert distance(logits, with_weights_as_read(fb.load(wide).model), prompts) > 3 * ROUNDED
