"""GGUF files of fewbit beside those of llama-quantize with an importance matrix, run by ik_llama.cpp, at equal types.

Run: python benchmarks/gguf_files.py [--model smollm2-rotated] [--calibration FILE] [--text FILE:40] [--rows REGEX]
Both get the same tokens and write the types of the same mixture, so that their files differ in metadata only. Needs
benchmarks/peers/make.sh llamacpp. Rows are cached in benchmarks/cache; the last column is KL by that of llama-quantize.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from weight_rows import CACHE, COSTS, HERE, Bench, bench_of, line, ran

MIXTURES = ("q4_k_m", "q3_k_m", "q2_k")
PEER = HERE / "peers/llamacpp/bin/python"


@dataclass(frozen=True)
class File:
    """A line of the table."""

    tool: str
    mixture: str
    #: Transforms of fewbit, as in a recipe.
    transforms: tuple[str, ...] = ()

    def __str__(self) -> str:
        return " ".join((self.tool, self.mixture, *self.transforms))

    @property
    def own(self) -> bool:
        """Whether fewbit writes it."""
        return self.tool == "fewbit"

    def command(self, bench: Bench, out: Path) -> list[str]:
        """Return the command line that writes the file."""
        given = ["--model", str(bench.folder), "--tokens", str(bench.tokens), "--out", str(out)]
        if not self.own:
            return [str(PEER), str(HERE / "peers/llamacpp_file.py"), *given, "--scheme", self.mixture.upper()]
        further = ["--transforms", json.dumps(self.transforms)] if self.transforms else []
        return [sys.executable, str(HERE / "fewbit_file.py"), *given, "--recipe", self.mixture, *further]

    def measured(self, bench: Bench) -> dict[str, Any]:
        """Write the file, run it, and return its size, its costs and its divergence on each text."""
        out = CACHE / "file.gguf"
        found = ran(self.command(bench, out)) | {"bytes": out.stat().st_size}
        found["quality"] = {text: divergence(bench, out, batches) for text, batches in bench.batches.items()}
        out.unlink()
        return found


def divergence(bench: Bench, file: Path, batches: list[torch.Tensor]) -> list[float]:
    """Return divergence, agreement and perplexity of a file when ik_llama.cpp runs it."""
    tokens = CACHE / "evaluated.npy"
    np.save(tokens, torch.cat(batches).numpy())
    given = ["--model", str(bench.folder), "--file", str(file), "--tokens", str(tokens)]
    found = ran([str(PEER), str(HERE / "peers/llamacpp_divergence.py"), *given])
    return [found["kl"], found["top1"], found["perplexity"]]


def files() -> Iterator[File]:
    for mixture in MIXTURES:
        yield File("llama-quantize", mixture)
        yield File("fewbit", mixture)
        yield File("fewbit", mixture, ("rotation",))


def main() -> None:
    bench, chosen = bench_of(__doc__)
    if not PEER.exists():
        raise SystemExit("llama.cpp is not installed: run benchmarks/peers/make.sh llamacpp")
    qualities = [f"{what}, {text}" for text in bench.batches for what in ("KL", "top-1", "perplexity", "KL ratio")]
    print(line(["tool", "mixture", "MB", *qualities, *list(COSTS)[:2], "peak MB"]))
    print(line(["---", "---", *["---:"] * (4 + len(qualities))]), flush=True)
    other: dict[str, dict[str, Any]] = {}
    for file in files():
        if not re.search(chosen, str(file)):
            continue
        key = [asdict(file), bench.model, "file"]
        found = bench.cached(key, lambda file=file: file.measured(bench), own=file.own)  # type: ignore[misc]
        if not file.own:
            other[file.mixture] = found["quality"]
        print(row(file, found, other.get(file.mixture, {})), flush=True)


def row(file: File, found: dict[str, Any], other: dict[str, list[float]]) -> str:
    cells = []
    for text, (kl, top1, perplexity) in found["quality"].items():
        ratio = f"{kl / other[text][0]:.2f}" if text in other else ""
        cells += [f"{kl:.4f}", f"{top1:.3f}", f"{perplexity:.2f}", ratio]
    costs = [f"{found[name]:.0f}" for name in ("seconds", "cpu_seconds", "peak_mb")]
    name = ", ".join((file.tool, *file.transforms))
    return line([name, file.mixture, f"{found['bytes'] / 1e6:.1f}", *cells, *costs])


if __name__ == "__main__":
    main()
