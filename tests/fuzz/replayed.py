"""Puts every kept input and some mutations of each to every reader, under the limits of the fuzzer: a program.

    python tests/fuzz/replayed.py --mutations 200 --seed 1

Needs no atheris: nothing guides the mutations. The last line is a JSON object; every input follows from the seed.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
from pathlib import Path

from executions import Executions
from mutator import Mutator, seeds_of
from readers import READERS

MOST = 64 << 10


def replayed(name: str, mutations: int, seed: int) -> dict:
    """Return what became of the inputs of one reader."""
    run = Executions(name, Path(tempfile.gettempdir()) / "fewbit-crashes" / name)
    seeds, mutate = seeds_of(name), Mutator(name)
    run.prepare(list(seeds.values()))
    ended = {own: run.run(content) for own, content in seeds.items()}
    rng = random.Random(f"{name} {seed}")
    data = b""
    for number in range(mutations):
        data = mutate(data if number % 4 else rng.choice(list(seeds.values())), MOST, rng.randrange(2**32))
        run.run(data)
    run.close()
    return {"seeds": ended, "executions": run.count, "read": run.read, "refused": run.refused,
            "reasons": len(run.reasons), "crashes": run.crashes, "slowest": round(run.slowest, 3)}  # fmt: skip


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=200)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    found = {name: replayed(name, given.mutations, given.seed) for name in READERS}
    sys.stdout.write(f"\n{json.dumps(found)}\n")  # libraries write there too
    sys.exit(any(own["crashes"] for own in found.values()))


if __name__ == "__main__":
    main()
