"""smollm2 in int3 g64: GPTQ, and training from where it ends, both on text that the model writes itself."""

from __future__ import annotations

import argparse
import re
import time

import torch

import fewbit as fb
from fewbit.evaluation.quality import compare
from fewbit.evaluation.text import read_text, token_sequences
from fewbit.sources import open_source
from fewbit.training.finetuning import Finetuning, Texts, finetune

SAMPLES, LENGTH = 32, 256


def language_part(given: argparse.Namespace) -> None:
    """KL divergence to the float model on texts that nothing was calibrated or trained on."""
    source = open_source("smollm2")
    teacher, tokenizer = source.load(), source.tokenizer()
    batches = {}
    for path in (None, *given.text):
        words, name = read_text(path)
        batches[name] = token_sequences(tokenizer, words, sequences=8, length=512)
    own = fb.Calibration(data="self", samples=SAMPLES, length=LENGTH)

    def solved(**options: bool) -> fb.Result:
        return fb.quantize("smollm2", recipe(**options), calibration=own)

    def trained() -> fb.Result:
        options = Finetuning(steps=given.steps, sequences=given.sequences, rate=given.rate)
        return finetune("smollm2", recipe(guided=True), Texts(training=own), options=options)

    rows = {
        "GPTQ": solved,
        f"finetuned from there, {given.steps} steps of {given.sequences} x {LENGTH} tokens": trained,
        "GPTQ, guided by gradients": lambda: solved(guided=True),
    }
    columns = [f"{what}, {name}" for name in batches for what in ("KL", "top-1")]
    print(f"\nsmollm2, int3 g64; {SAMPLES} x {LENGTH} tokens that it writes itself\n")
    print(f"| method | {' | '.join(columns)} | CPU s |\n| --- |{' ---: |' * (len(columns) + 1)}")
    for name, make in rows.items():
        if not re.search(given.methods, name):
            continue
        started = time.process_time()
        model = make().model
        seconds = time.process_time() - started
        cells = []
        for own_batches in batches.values():
            _, after = compare(scores(teacher), scores(model), own_batches)
            cells += [f"{after.kl_divergence:.4f}", f"{after.top1_agreement:.3f}"]
        print(f"| {name} | {' | '.join(cells)} | {seconds:.0f} |", flush=True)


def recipe(**options: bool) -> fb.Recipe:
    keep = [fb.keep(kind=kind) for kind in ("head", "embedding")]
    return fb.Recipe([*keep, fb.Rule(kind="linear", weight="int3 g64", algorithm={"name": "gptq", **options})])


def scores(model):
    return torch.no_grad()(lambda tokens: model(tokens, use_cache=False).logits)
