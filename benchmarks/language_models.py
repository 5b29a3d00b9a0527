"""Language models at 4, 3 and 2 bits: transforms and algorithms of fewbit beside every peer, on the same tokens.

Run: python benchmarks/language_models.py [--model smollm2-rotated] [--calibration FILE] [--text FILE:40] [--rows REGEX]
With --keep rows are written to benchmarks/kept; `--kept MODEL` alone prints the table of those, as the docs have it.
Each row runs in a process of its own and is cached in benchmarks/cache, so that a stopped run goes on where it was.
Peers run from environments of their own, made by benchmarks/peers/make.sh; without one its rows are left out, aloud.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import Any

from kept_rows import kept_table, read_kept
from weight_rows import Row, fewbit_row, table

SCHEMES = ("int4 g64", "int4 g64 asym", "int3 g64", "int3 g64 asym", "int2 g64", "int2 g64 asym")
STEPS, SAMPLES = 100, 4
#: What the rows of the documents' table were calibrated on.
CALIBRATION = "wikitext-2-valid.txt"


def sections() -> Iterator[list[Row]]:
    """Yield the rows that are compared with one another: those of a scheme."""
    yield from ([*peers(scheme), *own(scheme)] for scheme in SCHEMES)
    scheme = "int4 channel"
    yield [
        Row("llm-compressor", scheme, (), "GPTQ"),
        Row("GPTQModel", scheme, (), "GPTQ"),
        fewbit_row(scheme, "gptq"),
        fewbit_row(scheme, "gptq, guided", guided=True),
        fewbit_row(scheme, "rotation, gptq", ["rotation"]),
        fewbit_row(scheme, "rotation, gptq, guided", ["rotation"], guided=True),
    ]


def own(scheme: str) -> Iterator[Row]:
    """Yield what fewbit makes of it."""
    yield fewbit_row(scheme, "nearest", name="nearest")
    yield fewbit_row(scheme, "gptq")
    yield fewbit_row(scheme, "gptq, damping 0.05", damping=0.05)
    yield fewbit_row(scheme, "gptq, guided", guided=True)
    yield fewbit_row(scheme, "gptq, guided, damping 0.01", guided=True, damping=0.01)
    yield fewbit_row(scheme, "awq, nearest", ["awq"], name="nearest")
    yield fewbit_row(scheme, "awq, gptq", ["awq"])
    yield fewbit_row(f"{scheme} clip", "awq, clip, gptq", ["awq"])
    yield salient(fewbit_row(scheme, "1 % of the channels in 16 bits, nearest", name="nearest"))
    yield fewbit_row(scheme, "rotation, gptq", ["rotation"])
    yield fewbit_row(scheme, "rotation, gptq, guided", ["rotation"], guided=True)
    yield written(fewbit_row(scheme, "gptq, 32 sequences written besides"))
    yield written(fewbit_row(scheme, "gptq, guided, 32 sequences written besides", guided=True))
    trained: dict[str, Any] = {"name": "autoround", "steps": STEPS}
    yield fewbit_row(scheme, f"rotation, autoround, {STEPS} steps", ["rotation"], **trained)
    trained["start"] = {"name": "gptq", "guided": True}
    yield fewbit_row(scheme, f"guided, autoround, {STEPS} steps", **trained)
    yield fewbit_row(scheme, f"guided, guided autoround, {STEPS} steps", **trained, guided=True)


def written(row: Row) -> Row:
    """Return a row with as many sequences that the model writes as it is given."""
    return replace(row, options=(*row.options, "--written", "32"))


def salient(row: Row) -> Row:
    """Return a row with a hundredth of the channels, of the largest inputs, in floats: what AWQ is compared with."""
    return replace(row, options=(*row.options, "--salient", "0.01"))


def peers(scheme: str) -> Iterator[Row]:
    """Yield what others make of it."""
    yield Row("torchao", scheme, (), "nearest")
    if "asym" in scheme:
        yield Row("HQQ", scheme, (), "data-free")
        free = scheme.replace("asym", "float-zero")
        yield fewbit_row(free, "hqq", name="hqq")
        yield fewbit_row(f"{free} lsq", "least squares", name="nearest")
    yield Row("llm-compressor", scheme, (), "GPTQ")
    yield Row("GPTQModel", scheme, (), "GPTQ")
    yield Row("llm-compressor", scheme, ("--modifiers", "awq"), "AWQ")
    yield Row("llm-compressor", scheme, ("--modifiers", "awq-gptq"), "AWQ, GPTQ")
    if scheme == "int4 g64":
        # Rows of 576 weights are no multiple of 256, which its other types of 4 bits, and its mixtures, take.
        yield Row("llama.cpp", "IQ4_NL", ("--pure",), "with an importance matrix")
        yield Row("llama.cpp", "Q4_0", ("--pure",), "with an importance matrix")
    yield Row("auto-round", scheme, ("--steps", str(STEPS), "--samples", str(SAMPLES)), f"{STEPS} steps")


def kept(model: str) -> Iterator[str]:
    """Yield the lines of the table of a model, from the rows that are kept."""
    found = {row.identity: row for row in read_kept() if (row.model, row.calibration) == (model, CALIBRATION)}
    return kept_table([found[row.identity] for row in section if row.identity in found] for section in sections())


if __name__ == "__main__":
    if sys.argv[1:2] == ["--kept"]:
        words = argparse.ArgumentParser(description="Print the table of the rows that are kept.")
        words.add_argument("--kept", metavar="MODEL", required=True)
        print("\n".join(kept(words.parse_args().kept)))
    else:
        table(__doc__, chain.from_iterable(sections()))
