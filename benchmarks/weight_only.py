"""Weight-only schemes of fewbit beside llm-compressor and HQQ: divergence, agreement, perplexity, time and memory.

Run: python benchmarks/weight_only.py [--model smollm2-rotated] [--calibration FILE] [--text FILE:40] [--rows REGEX]
Each row runs in a process of its own and is cached in benchmarks/cache, so that a stopped run goes on where it was.
Peers run from environments of their own, made by benchmarks/peers/make.sh; without one its rows are left out, aloud.
"""

from __future__ import annotations

from weight_rows import Row, fewbit_row, table


def rows() -> list[Row]:
    schemes = ["int4 g64", "int4 g64 asym", "int3 g64", "int3 g64 asym", "int2 g64 asym"]
    found = []
    for scheme in schemes:
        found.append(Row("fewbit", scheme, ("--algorithm", '{"name": "nearest"}'), "nearest"))
        found.append(Row("llm-compressor", scheme, (), "GPTQ"))
        if "asym" in scheme:
            found.append(Row("HQQ", scheme, (), "data-free"))
            free = scheme.replace("asym", "float-zero")
            found.append(fewbit_row(free, "hqq", name="hqq"))
            found.append(fewbit_row(f"{free} lsq", "least squares", name="nearest"))
        found.append(fewbit_row(scheme, "gptq"))
    found += [fewbit_row(scheme, "gptq, asymmetric", asymmetric=True) for scheme in schemes]
    found.append(fewbit_row("int2 g64 asym", "autoround, 100 steps", name="autoround", steps=100))
    for scheme in schemes:
        for order in ("none", "activation"):
            found.append(fewbit_row(scheme, f"gptq, order {order}", order=order))
            found.append(fewbit_row(scheme, f"gptq, guided, order {order}", order=order, guided=True))
    found.append(fewbit_row("int4 g64", "gptq, no descent, no fit", sweeps=0, fit=False))
    together = fewbit_row("int4 g64", "gptq, not true-sequential")
    found.append(Row("fewbit", "int4 g64", (*together.options, "--no-sequential"), together.label))
    return found


if __name__ == "__main__":
    table(__doc__, rows())
