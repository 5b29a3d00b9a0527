"""How long 8 to 512 workers of Ray take for a model of 70B parameters, from times that are measured here.

Measured with --measure, into scale_constants.json: seconds of one core for runs, second moments, merging, GPTQ and
copies through the object store, and of the clock for a task that does nothing. Simulated is what the executor does: for
the layers of a block that share an input, runs of the parts on all workers, the sums of all parts to the head, one
after the other, solves with the costliest first, each of which waits for its numbers, and codes back to every machine.
The link of the head carries one thing at a time. Run: python benchmarks/scale_simulation.py [--measure]
"""

from __future__ import annotations

import argparse
import heapq
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from math import ceil
from pathlib import Path
from typing import Any

CONSTANTS = Path(__file__).with_name("scale_constants.json")
#: Sizes that GPTQ is measured on, (out, in), and bytes of a copy.
SOLVED, COPIED = ((256, 512), (1024, 512), (256, 1024), (1024, 1024), (512, 1536)), 1 << 27
#: A Llama of 70B: blocks, the widths of the residual stream, of keys and of the MLP; data as GPTQ's authors use them.
BLOCKS, WIDTH, KEYS, INNER = 80, 8192, 1024, 28672
SEQUENCES, LENGTH = 128, 2048
#: Bytes a second between two machines, and workers on one of them.
LINK, ON_ONE = 25e9 / 8, 8
#: Layers that share an input: its width, and their outputs.
GROUPS = ((WIDTH, (WIDTH, KEYS, KEYS)), (WIDTH, (WIDTH,)), (WIDTH, (INNER, INNER)), (INNER, (WIDTH,)))


@dataclass(frozen=True)
class Constants:
    """Seconds of one core."""

    #: A multiplication and addition of a run, and of a second moment.
    run: float
    moment: float
    #: A byte of a sum that is merged, and one that is put into the object store and read from it.
    merged: float
    copied: float
    #: GPTQ: per in^3, per out in^2.
    factored: float
    rounded: float
    #: A task that does nothing, by the clock.
    task: float

    def solve(self, out: int, width: int) -> float:
        return self.factored * width**3 + self.rounded * out * width**2


@dataclass(frozen=True)
class Setting:
    """What is simulated."""

    constants: Constants
    workers: int
    #: Sequences of a part.
    part: int
    #: How much faster a worker computes than the core that was measured.
    speed: float = 1.0

    @property
    def parts(self) -> int:
        return ceil(SEQUENCES / self.part)

    def computed(self, seconds: float) -> float:
        return seconds / self.speed

    def sent(self, nbytes: float) -> float:
        """Seconds that the head's link is busy."""
        return nbytes * (1.0 / LINK + self.constants.copied)


def simulated(setting: Setting) -> dict[str, float]:
    """Return seconds by phase of a whole model."""
    found = dict.fromkeys(("gradients", "runs", "sums to the head", "solves", "codes to all"), 0.0)
    rounds = ceil(setting.parts / setting.workers) * setting.part * LENGTH
    weights = sum(width * sum(outs) for width, outs in GROUPS)
    attention = 2 * LENGTH * WIDTH
    # Forward, forward again on the way back, and the gradients of what flows: none of weights.
    found["gradients"] = BLOCKS * setting.computed(3 * rounds * (weights + attention) * setting.constants.run)
    for width, outs in GROUPS:
        forward = width * sum(outs) + (attention if len(outs) == 3 else 0)
        seen = width**2 / 2 * setting.constants.moment
        found["runs"] += BLOCKS * setting.computed(rounds * (forward * setting.constants.run + seen))
        sums = 4.0 * width**2 * setting.parts
        merging = sums * setting.constants.merged / setting.speed
        found["sums to the head"] += BLOCKS * (setting.sent(sums) + merging)
        found["solves"] += BLOCKS * solved(setting, width, outs)
        machines = ceil(setting.workers / ON_ONE)
        found["codes to all"] += BLOCKS * setting.sent(float(width * sum(outs)) * machines)
    return found


def solved(setting: Setting, width: int, outs: tuple[int, ...]) -> float:
    """Return when the last layer of a group is back: the head sends one after the other, workers solve meanwhile."""
    free = [0.0] * setting.workers
    link, last = 0.0, 0.0
    for out in sorted(outs, reverse=True):
        link += setting.constants.task + setting.sent(4.0 * width**2 + 2.0 * out * width)
        begun = max(link, heapq.heappop(free))
        done = begun + setting.computed(setting.constants.solve(out, width))
        heapq.heappush(free, done)
        last = max(last, done + setting.sent(float(out * width)))
    return last


def alone(constants: Constants, speed: float) -> float:
    """Return the seconds of one process: nothing is sent, and layers that share an input share its factors."""
    rounds, attention = SEQUENCES * LENGTH, 2 * LENGTH * WIDTH
    total = 3 * rounds * (sum(width * sum(outs) for width, outs in GROUPS) + attention) * constants.run
    for width, outs in GROUPS:
        forward = width * sum(outs) + (attention if len(outs) == 3 else 0)
        total += rounds * (forward * constants.run + width**2 / 2 * constants.moment)
        total += constants.factored * width**3 + sum(constants.rounded * out * width**2 for out in outs)
    return BLOCKS * total / speed


def best(constants: Constants, workers: int, speed: float) -> tuple[Setting, dict[str, float]]:
    """Return the size of parts that takes least time, and that time by phase."""
    settings = [Setting(constants, workers, part, speed) for part in (1, 2, 4, 8, 16)]
    found = [(own, simulated(own)) for own in settings]
    return min(found, key=lambda pair: sum(pair[1].values()))


def measured() -> Constants:
    """Return what one core of this machine takes."""
    import torch

    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    rows, weight = torch.randn(512, 2048, generator=draw), torch.randn(2048, 2048, generator=draw)
    from fewbit.statistics.second_moment import SecondMoment

    seen = SecondMoment.init(2048, rows)
    run = busy(lambda: rows @ weight.T) / (512 * 2048**2)
    moment = busy(lambda: seen.update(rows)) / (512 * 2048**2 / 2)
    merged = busy(lambda: seen.merge(seen)) / seen.total.nbytes
    copied, task = _by_ray()
    factored, rounded = _gptq()
    return Constants(
        run=run, moment=moment, merged=merged, copied=copied, factored=factored, rounded=rounded, task=task
    )


def _gptq() -> tuple[float, float]:
    """Return the seconds of a solve per in^3 and per out in^2, by least squares of relative errors."""
    import numpy as np
    import torch

    from fewbit.algorithms.gptq import Gptq
    from fewbit.schemes.notation import parse_scheme
    from fewbit.statistics.guided_moment import GuidedSecondMoment

    times = []
    for out, width in SOLVED:
        draw = torch.Generator().manual_seed(width)
        rows, weight = torch.randn(2 * width, width, generator=draw), torch.randn(out, width, generator=draw)
        seen, nothing = GuidedSecondMoment.init(width, rows), GuidedSecondMoment.init(width, rows)
        seen.update(rows @ torch.randn(width, width, generator=draw), torch.ones(len(rows)))

        def solve(seen: Any = seen, nothing: Any = nothing, weight: torch.Tensor = weight) -> None:
            seen.merge(nothing)  # forgets what was derived for the go before
            Gptq(guided=True)(weight, {"guided_second_moment": seen}, parse_scheme("int4 g128"))

        times.append(busy(solve))
    shares = np.asarray([[width**3, out * width**2] for out, width in SOLVED]) / np.asarray(times)[:, None]
    factored, rounded = np.linalg.lstsq(shares, np.ones(len(times)), rcond=None)[0]
    print(
        "GPTQ, seconds: "
        + ", ".join(f"{out} x {width} {own:.2f}" for (out, width), own in zip(SOLVED, times, strict=True))
    )
    return max(float(factored), 0.0), float(rounded)


def _by_ray() -> tuple[float, float]:
    """Return the seconds of a byte through the object store, and of a task that does nothing."""
    import ray
    import torch

    from fewbit.execution.carried import packed, unpacked
    from fewbit.execution.ray import Ray

    with Ray(workers=1).opened():
        nothing = ray.remote(lambda: None)
        ray.get(nothing.remote())
        started = time.perf_counter()
        ray.get([nothing.remote() for _ in range(200)])
        task = (time.perf_counter() - started) / 200
        tensor = torch.zeros(COPIED // 4)
        return busy(lambda: unpacked(ray.get(ray.put(packed(tensor))))) / COPIED, task


def busy(work: Callable[[], object]) -> float:
    """Return the least processor time of three goes behind a first one, which other work changes little."""
    work()
    times = []
    for _ in range(3):
        started = time.process_time()
        work()
        times.append(time.process_time() - started)
    return min(times)


def table(constants: Constants, speed: float) -> None:
    """Print a row for each number of workers."""
    one = alone(constants, speed)
    print(f"\nworkers {speed:g} times as fast as this core; one process alone {one / 3600:.1f} h")
    print(f"{'workers':>7} {'part':>4} {'hours':>7} {'faster':>7}  share of the time by phase, the largest first")
    for workers in (8, 16, 32, 64, 128, 256, 512):
        setting, phases = best(constants, workers, speed)
        total = sum(phases.values())
        shares = sorted(phases.items(), key=lambda own: -own[1])
        text = ", ".join(f"{name} {seconds / total:.0%}" for name, seconds in shares if seconds > 0.005 * total)
        print(f"{workers:7} {setting.part:4} {total / 3600:7.2f} {one / total:7.1f}  {text}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--measure", action="store_true", help="measure the constants on this machine first")
    parser.add_argument("--speed", type=float, nargs="*", default=[1.0, 100.0], help="of a worker beside this core")
    given = parser.parse_args()
    if given.measure:
        CONSTANTS.write_text(json.dumps(asdict(measured()), indent=2) + "\n", encoding="utf-8")
    constants = Constants(**json.loads(CONSTANTS.read_text(encoding="utf-8")))
    for name, own in asdict(constants).items():
        print(f"{name:10} {own:.3g} s")
    for speed in given.speed:
        table(constants, speed)


if __name__ == "__main__":
    main()
