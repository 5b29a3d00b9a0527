"""vLLM on the CPU runs a folder in int8 with rounded inputs, and writes what transformers would have written."""

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import fewbit as fb

PEERS = Path(__file__).parents[2] / "benchmarks" / "peers"
PROMPTS = (
    "The capital of France is the city of", "Once upon a time there was a little",
    "Water boils at one hundred degrees when the",
)  # fmt: skip
NEW = 16
#: How far below its best token transformers may see one that vLLM took, in logits. Both round every layer's result to
#: bfloat16, in which logits of 16 to 32 are 0.125 apart, and find ranges in other types; about half of it was seen.
CLOSE = 1.5
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (PEERS / "vllm" / "bin" / "python").exists(), reason="run benchmarks/peers/make.sh vllm"),
    pytest.mark.filterwarnings("ignore"),  # of transformers on its way through generation
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    batches = [torch.arange(48)[None]]
    result = fb.quantize("smollm2", "w8a8", to="compressed-tensors", dtype="bfloat16", evaluation=batches)
    return result.save(tmp_path_factory.mktemp("vllm") / "w8a8")


@pytest.fixture(scope="module")
def prompts(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return np.asarray([tokenizer(text)["input_ids"][:7] for text in PROMPTS])


@pytest.fixture(scope="module")
def written(folder, prompts):
    """What vLLM's process prints."""
    np.save(folder.parent / "prompts.npy", prompts)
    command = [PEERS / "vllm" / "bin" / "python", PEERS / "vllm_generate.py", "--model", folder, "--new", str(NEW)]
    command += ["--tokens", folder.parent / "prompts.npy"]
    run = subprocess.run(command, check=False, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-2000:]
    return json.loads(run.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def model(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    model(torch.tensor([[1, 2, 3]]))  # which decompresses the weights
    return model


def shortfall(model, prompts, tokens):
    """How far below the best one each of `tokens` lies, given the same text before it: (prompts, new)."""
    whole = torch.from_numpy(np.concatenate([prompts, tokens], axis=1))
    with torch.no_grad():
        logits = model(whole).logits[:, prompts.shape[1] - 1 : -1].float()
    taken = torch.take_along_dim(logits, torch.from_numpy(tokens)[..., None], dim=-1)[..., 0]
    return (logits.amax(-1) - taken).numpy()


def test_vllm_runs_every_layer_on_its_integer_kernel(written):
    # q, k and v are one layer there, as are gate and up.
    assert written["kernels"] == {"CompressedTensorsW8A8Int8 CPUInt8ScaledMMLinearKernel": 30 * 4}


def test_every_token_that_vllm_writes_is_the_best_or_close_to_it_in_transformers(written, model, prompts):
    tokens = np.asarray(written["tokens"])
    assert tokens.shape == (len(PROMPTS), NEW)
    short = shortfall(model, prompts, tokens)
    assert short.max() < CLOSE
    assert (short == 0).mean() > 0.75


def test_the_first_tokens_agree_until_two_are_nearly_as_good(written, model, prompts):
    """Where the texts part for the first time, the margin of transformers' own token is within the rounding."""
    with torch.no_grad():
        own = model.generate(torch.from_numpy(prompts), max_new_tokens=NEW, min_new_tokens=NEW, do_sample=False)
    ours, tokens = own[:, prompts.shape[1] :].numpy(), np.asarray(written["tokens"])
    agreeing = [int(np.argmin([*(a == b), False])) for a, b in zip(ours, tokens, strict=True)]
    short = shortfall(model, prompts, tokens)
    assert all(n == NEW or row[n] < CLOSE for n, row in zip(agreeing, short, strict=True))
    assert max(agreeing) >= NEW // 2


def test_the_comparison_notices_a_model_with_one_wrong_scale(written, model, prompts):
    """The negative control: the scales of a single layer are four times as large."""
    weight = model.model.layers[1].mlp.down_proj.weight
    before = weight.detach().clone()
    weight.data *= 4
    try:
        assert shortfall(model, prompts, np.asarray(written["tokens"])).max() > CLOSE
    finally:
        weight.data.copy_(before)
