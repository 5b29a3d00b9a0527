"""One process beside workers of Ray on the same machine: the same bytes, and what the workers cost beside the work.

A Llama of random weights (seeded) is quantized to int4 g128 by GPTQ, as `w4a16` does it, by each executor in a process
of its own, with one thread of torch a worker. Run: python benchmarks/scale_workers.py; the last line is JSON.
Seconds are those of the clock: of the whole run, of starting the workers, and of all solves one behind the other; and
those of the processor, of this process and of all that Ray starts, which other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil

#: Of the model, and of its data: batches of a part, so that four workers have one each.
SHAPE = {"hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 2, "num_attention_heads": 8,
         "num_key_value_heads": 4, "vocab_size": 512, "max_position_embeddings": 512}  # fmt: skip
BATCHES, LENGTH, PART = 16, 256, 4


def quantized(workers: int, output: Path) -> dict[str, Any]:
    """Return what a run with so many workers took, 0: in this process; the checkpoint goes to `output`."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import fewbit as fb
    from fewbit.execution.in_process import InProcess
    from fewbit.execution.ray import Ray

    torch.set_num_threads(1)
    torch.manual_seed(0)
    model = LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()
    draw = torch.Generator().manual_seed(1)
    batches = list(torch.randint(0, SHAPE["vocab_size"], (BATCHES, 1, LENGTH), generator=draw))
    calibration = fb.Calibration(data=batches, part=PART)
    _compiled(fb, torch)
    place = Timed(Ray(workers=workers) if workers else InProcess())
    started, busy = time.perf_counter(), time.process_time()
    result = fb.quantize(model, "w4a16", calibration=calibration, options=fb.Options(executor=place))
    seconds, busy = time.perf_counter() - started, time.process_time() - busy
    result.save(output)
    solves = sum(layer.seconds or 0.0 for layer in result.report.layers)
    found = {"workers": workers, "seconds": seconds, "start": place.seconds, "solves": solves}
    found["processor"] = busy + place.others
    return {**found, "sha256": digest(output), "remarks": list(result.report.remarks)}


class Timed:
    """An executor, and how long it took to be there."""

    def __init__(self, place: Any) -> None:
        self._place, self.seconds, self.others = place, 0.0, 0.0

    def require(self) -> None:
        self._place.require()

    @contextmanager
    def opened(self) -> Iterator[Any]:
        started, done, seen = time.perf_counter(), threading.Event(), dict[int, float]()
        watch = threading.Thread(target=watched, args=(done, seen))
        watch.start()
        with self._place.opened() as executor:
            self.seconds = time.perf_counter() - started
            yield executor
            done.set()
            watch.join()
            self.others = sum(seen.values())


def watched(done: threading.Event, seen: dict[int, float]) -> None:
    """Keep the seconds that each process behind this one has computed, twice a second: workers end before the run."""
    while not done.wait(0.5):
        for own in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):
                times = own.cpu_times()
                seen[own.pid] = times.user + times.system


def _compiled(fb: Any, torch: Any) -> None:
    """Have the loops of GPTQ compiled before the clock runs."""
    batches = [torch.randn(64, 128)]
    fb.quantize(torch.nn.Sequential(torch.nn.Linear(128, 16)), "w4a16", calibration=batches)


def digest(folder: Path) -> str:
    """Return one hash of all files of a checkpoint but the reports, which hold times."""
    found = hashlib.sha256()
    for file in sorted(folder.rglob("*")):
        if file.is_file() and not file.name.startswith("report."):
            found.update(file.relative_to(folder).as_posix().encode() + b"\0" + file.read_bytes())
    return found.hexdigest()


def row(workers: int) -> dict[str, Any]:
    """Run one executor in a process of its own."""
    with TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--row", str(workers), "--output", str(Path(folder) / "out")]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "NUMBA_NUM_THREADS": "1"}
        done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2, 4], help="0: in this process")
    parser.add_argument("--row", type=int, help="one run; its JSON is printed")
    parser.add_argument("--output", type=Path)
    given = parser.parse_args()
    if given.row is not None:
        print(json.dumps(quantized(given.row, given.output)))
        return
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {BATCHES} x {LENGTH} tokens in parts of {PART}")
    print(f"{'workers':>10} {'seconds':>8} {'start':>8} {'solves':>8} {'processor':>9}  bytes")
    rows = []
    for workers in given.workers:
        own = row(workers)
        rows.append(own)
        same = "the same" if own["sha256"] == rows[0]["sha256"] else "DIFFERENT"
        print(
            f"{workers or 'in process':>10} {own['seconds']:8.1f} {own['start']:8.1f} {own['solves']:8.1f} "
            f"{own['processor']:9.1f}  {same}",
            flush=True,
        )
    print(json.dumps(rows))
    sys.exit(len({own["sha256"] for own in rows}) != 1)


if __name__ == "__main__":
    main()
