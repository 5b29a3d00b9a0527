"""Fuzzes every reader of files under atheris, one process after the other, and sums up what became of the inputs.

    python benchmarks/fuzz.py --executions 1000000 --out crashes

It needs `pip install atheris` (Linux). Inputs that end in another error than one of fewbit, take a second of the
processor or more than 16 times their size and 64 MiB of memory are kept under `--out`; the exit code is 1 then.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).parents[1] / "tests" / "fuzz"
sys.path.insert(0, str(TESTS))

from readers import READERS  # noqa: E402  # it lies beside the tests


def run(reader: str, executions: int, seed: int, out: Path, seconds: int) -> dict:
    """Run one reader to the end; a process that dies is a crash, and another takes what is left."""
    whole = {"reader": reader, "executions": 0, "read": 0, "refused": 0, "crashes": {}, "seconds": 0.0}
    for attempt in range(5):
        command = [sys.executable, str(TESTS / "guided.py"), reader, "--executions", str(executions)]
        command += ["--seed", str(seed + attempt), "--out", str(out), "--seconds", str(seconds)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, errors="replace")
        lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
        if done.returncode == 0 and lines:
            return json.loads(lines[-1]) | {"crashes": {**whole["crashes"], **json.loads(lines[-1])["crashes"]}}
        whole["crashes"][f"process ended by {done.returncode}"] = attempt + 1
        (out / f"{reader}-{seed + attempt}.log").write_text(done.stderr[-20_000:])
    return whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--executions", type=int, default=1_000_000, help="of all readers together")
    parser.add_argument("--reader", action="append", choices=READERS, help="only these")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seconds", type=int, default=0, help="of each reader at most")
    parser.add_argument("--out", type=Path, default=Path("crashes"))
    given = parser.parse_args()
    if importlib.util.find_spec("atheris") is None:
        sys.exit("atheris is not installed: pip install atheris")
    given.out.mkdir(parents=True, exist_ok=True)
    chosen = given.reader or list(READERS)
    shares = sum(READERS[name].share for name in chosen)
    total: Counter[str] = Counter()
    started = time.perf_counter()
    print(f"{'reader':20} executions     read  refused reasons crashes     /s slowest")
    for name in chosen:
        count = max(1, round(given.executions * READERS[name].share / shares))
        found = run(name, count, given.seed, given.out, given.seconds)
        crashes = sum(found["crashes"].values())
        rate = found["executions"] / max(found["seconds"], 0.1)
        print(
            f"{name:20} {found['executions']:10,} {found['read']:8,} {found['refused']:8,} "
            f"{found.get('reasons', 0):7,} {crashes:7,} {rate:6,.0f} {found.get('slowest', 0):7.2f}",
            flush=True,
        )
        for where, times in found["crashes"].items():
            print(f"    {times} x {where}", flush=True)
        total.update(executions=found["executions"], read=found["read"], refused=found["refused"], crashes=crashes)
    took = time.perf_counter() - started
    print(json.dumps({**total, "seconds": round(took), "per second": round(total["executions"] / took)}))
    sys.exit(bool(total["crashes"]))


if __name__ == "__main__":
    main()
