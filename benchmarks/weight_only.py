"""Weight-only schemes on smollm2: KL divergence, perplexity, size and time, as a Markdown table.

Run: python benchmarks/weight_only.py [--sequences 8] [--length 512] [--schemes "int4 g64" "int8"]
The head and the embedding stay float. Text: pydoc_data.topics of the running Python. Rows are printed as they come.
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
import time
from pathlib import Path

import fewbit as fb
from fewbit.evaluation.size import bytes_on_disk
from fewbit.evaluation.text import read_text, token_sequences
from fewbit.report.data import installed_versions, this_machine
from fewbit.sources import open_source

SCHEMES = ("int8", "e4m3", "int4 g64", "int4 g64 asym", "int3 g64", "int3 g64 asym", "int2 g64 asym")
HEADER = ("scheme", "bits a weight", "KL, nats", "top-1", "perplexity", "weights on disk, MB", "quantize, s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sequences", type=int, default=8)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--schemes", nargs="+", default=SCHEMES)
    arguments = parser.parse_args()
    source = open_source("smollm2")
    text, name = read_text(None)
    batches = token_sequences(source.tokenizer(), text, sequences=arguments.sequences, length=arguments.length)
    versions = installed_versions()
    print(f"{name}, {arguments.sequences} x {arguments.length} tokens; {this_machine()}; torch {versions['torch']}\n")
    print(row(HEADER))
    print(row(["---", *["---:"] * (len(HEADER) - 1)]))
    for number, scheme in enumerate(arguments.schemes):
        cells, reference = measure(scheme, fb.Evaluation(batches=batches, name=name))
        if number == 0:
            print(row(reference), flush=True)
        print(row(cells), flush=True)


def measure(scheme: str, evaluation: fb.Evaluation) -> tuple[list[str], list[str]]:
    """Return the row of a scheme, and the row of the float model that it was measured beside."""
    model = open_source("smollm2").load()
    recipe = fb.Recipe([fb.Rule(kind="linear", weight=scheme)])
    result = fb.quantize(model, recipe, to="compressed-tensors", dtype="float16", evaluation=evaluation)
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        result.save(Path(folder) / "model")
        seconds = result.report.seconds["solve"] + time.perf_counter() - started
        size = bytes_on_disk(Path(folder) / "model")
    before, after = result.report.before, result.report.after
    rows = [row for row in result.plan.rows if row.scheme]
    bits = 8 * sum(row.bytes_after for row in rows) / sum(math.prod(row.layer.shape) for row in rows)
    cells = [
        scheme, f"{bits:.2f}", f"{after.kl_divergence:.4f}", f"{after.top1_agreement:.3f}", f"{after.perplexity:.2f}",
        f"{size / 1e6:.1f}", f"{seconds:.1f}",
    ]  # fmt: skip
    whole = f"{result.plan.bytes_before / 1e6:.1f}"
    return cells, ["float16", "16", "0", "1", f"{before.perplexity:.2f}", whole, ""]


def row(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    sys.exit(main())
