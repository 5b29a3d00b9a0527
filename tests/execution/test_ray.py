"""Workers of Ray come to the bytes of one process, also when some of them die."""

import os
import sys

import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.algorithms.gptq import Gptq
from fewbit.errors import ExecutionError, NonFiniteError
from fewbit.execution import ray as module
from fewbit.execution.executor import SolveTask
from fewbit.execution.ray import Ray, RayExecutor
from fewbit.execution.ray_calibration import LIVES, DividedCalibration
from fewbit.schemes.notation import parse_scheme

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'fewbit[ray]'")
pytestmark = [
    pytest.mark.slow,  # every worker imports torch
    pytest.mark.usefixtures("one_thread", "cluster"),
    # Ray closes what it had open towards its own processes when these are gone.
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]
BATCHES = list(torch.randint(0, 320, (5, 1, 20), generator=torch.Generator().manual_seed(1)))

ROWS = list(torch.randn(4, 40, 32, generator=torch.Generator().manual_seed(0)))


class Blocks(nn.Module):
    """Blocks that end the process of a worker, once, in the batch of the given number behind two quantized blocks."""

    def __init__(self, marker=None, number=0):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.Tanh()) for _ in range(3))
        self.out = nn.Linear(32, 8)
        self.marker, self.fatal = marker, ROWS[number]

    def forward(self, rows):
        fatal = self.marker and torch.equal(rows, self.fatal) and type(self.layers[1][0]) is not nn.Linear
        if fatal and once(self.marker):
            os._exit(1)
        for layer in self.layers:
            rows = layer(rows)
        return self.out(rows)


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8))


def once(marker):
    """Whether this is the first time, and not the process of the test."""
    if os.getpid() == int(marker.read_text()):
        return False
    try:
        marker.with_suffix(".dead").touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


@pytest.fixture(scope="module")
def cluster():
    """Two cores of this machine; runs find Ray started, and leave it so."""
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no worker can import tests
    yield
    ray.shutdown()


def same(one, other):
    """Whether two results have the same bits: the model's, and what was measured on the way."""
    mine, theirs = one.model.state_dict(), other.model.state_dict()
    assert list(mine) == list(theirs)
    for name, tensor in mine.items():
        assert torch.equal(tensor, theirs[name]), name
    fields = ("name", "weight_sqnr", "nearest_sqnr", "solved_sqnr", "damping", "notes", "remarks")
    for field in fields:
        own = [getattr(layer, field) for layer in one.report.layers]
        assert own == [getattr(layer, field) for layer in other.report.layers], field


def run(model, recipe, executor, *, batches=BATCHES, part=1, **calibration):
    data = fb.Calibration(data=batches, part=part, **calibration)
    return fb.quantize(model, recipe, calibration=data, options=fb.Options(executor=executor))


def assert_divided(spread, alone, workers):
    """No fall-back, and the same bits."""
    same(spread, alone)
    assert spread.report.remarks == alone.report.remarks
    assert spread.report.executor.startswith(f"ray, {workers} CPU worker")
    assert spread.report.calibration_part == alone.report.calibration_part == 1


def test_one_and_two_workers_come_to_the_bytes_of_one_process(small_llama):
    alone = run(small_llama(), "w4a16", "in-process")
    for workers in (1, 2):
        assert_divided(run(small_llama(), "w4a16", Ray(workers=workers)), alone, workers)


MIXED = fb.Recipe(
    [
        fb.Rule("layers.0.0", weight="int8"),
        fb.Rule("layers.1.0", weight="int4 g32", input="int8 static average", algorithm="gptq"),
        fb.Rule(kind="linear", weight="nvfp4", input="int8 static", algorithm=Gptq(asymmetric=True)),
    ],
    corrections=["bias"],
)


@pytest.mark.parametrize("sequential", [True, False])
def test_every_statistic_is_divided(sequential):
    alone = run(Blocks(), MIXED, "in-process", batches=ROWS, sequential=sequential)
    assert_divided(run(Blocks(), MIXED, Ray(workers=2), batches=ROWS, sequential=sequential), alone, 2)


def test_what_needs_all_batches_in_one_place_is_done_there_and_said(small_llama):
    recipe = fb.Recipe([fb.keep(kind="head"), fb.Rule(kind="linear", weight="int4 g32")], transforms=["awq"])
    alone = run(small_llama(), recipe, "in-process")
    spread = run(small_llama(), recipe, Ray(workers=2))
    same(spread, alone)
    said = [own for own in spread.report.remarks if own not in alone.report.remarks]
    assert said == [
        "calibration ran in one process, since the recipe rescales or shifts channels by what all batches show; the "
        "workers solved layers"
    ]


class Deadly(Gptq):
    """GPTQ that ends the process of a worker: the first one, or every one."""

    marker, always = None, False

    def __call__(self, weight, statistics, scheme):
        if once(self.marker) or self.always:
            os._exit(1)
        return super().__call__(weight, statistics, scheme)


def deadly(marker, *, always=False):
    marker.write_text(str(os.getpid()))
    return type("Deadly", (Deadly,), {"marker": marker, "always": always})()


def test_a_worker_that_dies_while_it_solves_is_replaced(tmp_path):
    plain = fb.Recipe([fb.Rule(kind="linear", weight="int4 g32", algorithm="gptq")])
    alone = run(two_layers(), plain, "in-process", batches=ROWS)
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int4 g32", algorithm=deadly(tmp_path / "solve"))])
    spread = run(two_layers(), recipe, Ray(workers=2), batches=ROWS)
    assert (tmp_path / "solve.dead").exists()
    same(spread, alone)


def test_a_solve_that_ends_every_worker_is_an_error_that_names_the_layer(tmp_path):
    module = two_layers()
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int4 g32", algorithm=deadly(tmp_path / "all", always=True))])
    with pytest.raises(ExecutionError, match=r"^0: the worker that solved it died 4 times; it may lack memory"):
        run(module, recipe, Ray(workers=1), batches=ROWS)
    assert type(module[0]) is nn.Linear


@pytest.mark.parametrize("number", [0, 3])
def test_a_worker_that_dies_with_its_batches_is_led_to_where_it_was(tmp_path, number):
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int4 g32", algorithm=Gptq(guided=True))])
    alone = run(Blocks(), recipe, "in-process", batches=ROWS)
    marker = tmp_path / "batches"
    marker.write_text(str(os.getpid()))
    spread = run(Blocks(marker, number), recipe, Ray(workers=2), batches=ROWS)
    assert marker.with_suffix(".dead").exists()
    same(spread, alone)


def test_a_worker_that_is_gone_when_its_sums_are_fetched_is_replaced_once(monkeypatch):
    plain = fb.Recipe([fb.Rule(kind="linear", weight="int4 g32", algorithm="gptq")])
    alone = run(two_layers(), plain, "in-process", batches=ROWS)
    fetched, lives = DividedCalibration._whole, []

    def dying(self, key, seen):
        (hand,) = self._hands
        assert len(seen[0].held[key]) == len(ROWS)  # two of them are asked for before one is there
        if not lives:
            ray.kill(hand.actor)
        whole = fetched(self, key, seen)
        lives.append(hand.lives)
        return whole

    monkeypatch.setattr(DividedCalibration, "_whole", dying)
    same(run(two_layers(), plain, Ray(workers=1), batches=ROWS), alone)
    assert lives == [LIVES - 1] * 2


def test_an_error_in_a_worker_is_that_of_one_process():
    batches = [*ROWS[:3], torch.full((40, 32), float("nan"))]
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int4 g32", input="int8 static average", algorithm="gptq")])
    said = []
    for executor in ("in-process", Ray(workers=2)):
        with pytest.raises(NonFiniteError) as caught:
            run(two_layers(), recipe, executor, batches=batches)
        said.append(str(caught.value))
    assert said[0] == said[1]
    assert "look upstream" in said[0]


def test_a_few_solves_are_in_flight_and_come_back_in_order(monkeypatch):
    executor, read, back = RayExecutor(workers=2, gpus=False, threads=1), [], []

    def taken(*given):
        back.append(given)
        return own(*given)

    own = module._taken
    monkeypatch.setattr(module, "_taken", taken)

    def task(number):
        def give():
            read.append(number)
            assert len(read) - len(back) <= executor.at_once == 2 * module.IN_FLIGHT
            return torch.full((2, 8), float(number + 1)), parse_scheme("int8 channel")

        return SolveTask(str(number), fb.Rule("a", weight="int8").algorithm, {}, give, cost=1.0)

    outcomes = list(executor.solve([task(number) for number in range(10)]))
    assert len(back) == 10
    largest = [float(own.solution.qtensor.dequantize().max()) for own in outcomes]
    assert largest == pytest.approx([float(number + 1) for number in range(10)], rel=0.01)  # int8


def test_the_costliest_solve_begins_first():
    read = []

    def task(number):
        def give():
            read.append(number)
            return torch.ones(2, 8), parse_scheme("int8 channel")

        return SolveTask(str(number), fb.Rule("a", weight="int8").algorithm, {}, give, cost=float(number))

    executor = RayExecutor(workers=1, gpus=False, threads=1)
    assert len(list(executor.solve([task(number) for number in range(6)]))) == 6
    assert read == [5, 4, 3, 2, 1, 0]
