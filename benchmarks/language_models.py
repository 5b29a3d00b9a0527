"""Language models at 4, 3 and 2 bits: transforms and algorithms of fewbit beside every peer, on the same tokens.

Run: python benchmarks/language_models.py [--model smollm2-rotated] [--calibration FILE] [--text FILE:40] [--rows REGEX]
Each row runs in a process of its own and is cached in benchmarks/cache, so that a stopped run goes on where it was.
Peers run from environments of their own, made by benchmarks/peers/make.sh; without one its rows are left out, aloud.
"""

from __future__ import annotations

from collections.abc import Iterator

from weight_rows import Row, fewbit_row, table

SCHEMES = ("int4 g64", "int4 g64 asym", "int3 g64", "int3 g64 asym", "int2 g64 asym")
STEPS, SAMPLES = 100, 4


def rows() -> Iterator[Row]:
    for scheme in SCHEMES:
        yield from peers(scheme)
        yield fewbit_row(scheme, "nearest", name="nearest")
        yield fewbit_row(scheme, "gptq")
        yield fewbit_row(scheme, "gptq, guided", guided=True)
        yield fewbit_row(scheme, "gptq, guided, damping 0.01", guided=True, damping=0.01)
        yield fewbit_row(scheme, "awq, nearest", ["awq"], name="nearest")
        yield fewbit_row(scheme, "awq, gptq", ["awq"])
        yield fewbit_row(scheme, "rotation, gptq", ["rotation"])
        yield fewbit_row(scheme, "rotation, gptq, guided", ["rotation"], guided=True)
        yield fewbit_row(scheme, f"rotation, autoround, {STEPS} steps", ["rotation"], name="autoround", steps=STEPS)
        start = {"name": "gptq", "guided": True}
        trained = {"name": "autoround", "steps": STEPS, "start": start}
        yield fewbit_row(scheme, f"guided, autoround, {STEPS} steps", **trained)
        yield fewbit_row(scheme, f"guided, guided autoround, {STEPS} steps", **trained, guided=True)
    yield Row("llm-compressor", "int4 channel", (), "GPTQ")
    yield Row("GPTQModel", "int4 channel", (), "GPTQ")
    yield fewbit_row("int4 channel", "gptq")
    yield fewbit_row("int4 channel", "gptq, guided", guided=True)
    yield fewbit_row("int4 channel", "rotation, gptq", ["rotation"])
    yield fewbit_row("int4 channel", "rotation, gptq, guided", ["rotation"], guided=True)


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
        yield Row("llama.cpp", "IQ4_XS", (), "with an importance matrix")
        yield Row("llama.cpp", "Q4_K", (), "with an importance matrix")
    yield Row("auto-round", scheme, ("--steps", str(STEPS), "--samples", str(SAMPLES)), f"{STEPS} steps")


if __name__ == "__main__":
    table(__doc__, rows())
