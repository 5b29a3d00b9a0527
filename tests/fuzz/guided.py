"""One reader under atheris: inputs that reach new lines of fewbit become seeds of others. A program.

    python tests/fuzz/guided.py safetensors --executions 10000 --seed 1 --out crashes

Half of the mutations are libFuzzer's, the others know the form of the file (mutations.py). Prints one JSON object.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import atheris

with atheris.instrument_imports(include=["fewbit"]):
    from executions import Executions
    from mutator import CORPUS, Mutator, seeds_of
    from readers import READERS


def prepared(name: str, out: Path) -> Executions:
    """Return the executions of a reader that has read its seeds: whatever it imports is there, and counts lines."""
    made = Executions(name, out / name)
    with atheris.instrument_imports(include=["fewbit"]):
        made.prepare(list(seeds_of(name).values()))
    return made


def main() -> None:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=READERS)
    parser.add_argument("--executions", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=Path("crashes"))
    parser.add_argument("--seconds", type=int, default=0, help="stop after so many")
    given = parser.parse_args()
    out = given.out.absolute()
    run = prepared(given.reader, out)
    started = time.perf_counter()

    def one(data: bytes) -> None:
        run.run(bytes(data))
        if run.count == given.executions or (given.seconds and time.perf_counter() - started > given.seconds):
            finish()

    def blindly(content: bytes, most: int) -> bytes:
        return atheris.Mutate(content, most)  # another function after Setup

    def finish() -> None:
        run.close()
        took = time.perf_counter() - started
        new = len(list(Path(found).iterdir()))
        shutil.rmtree(found)
        summary = {
            "reader": given.reader, "executions": run.count, "read": run.read, "refused": run.refused,
            "crashes": run.crashes, "found": new, "reasons": len(run.reasons),
            "slowest": round(run.slowest, 3), "seconds": round(took, 1),
        }  # fmt: skip
        sys.stdout.write(f"\n{json.dumps(summary)}\n")
        for reason, count in run.reasons.most_common(8):
            sys.stderr.write(f"reason: {count} {reason}\n")
        sys.stdout.flush()
        os._exit(0)  # libFuzzer would count on

    found = tempfile.mkdtemp(prefix="fewbit-corpus-")
    arguments = [
        sys.argv[0], f"-seed={given.seed}", f"-runs={given.executions + 10**9}", "-max_len=65536", "-verbosity=0",
        "-print_final_stats=0", "-rss_limit_mb=0", "-malloc_limit_mb=0", "-timeout=60", "-detect_leaks=0",
        "-mutate_depth=2",
        f"-artifact_prefix={out / given.reader}-native-", found, str(CORPUS / given.reader),
    ]  # fmt: skip
    out.mkdir(parents=True, exist_ok=True)
    atheris.Setup(arguments, one, custom_mutator=Mutator(given.reader, blindly))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
