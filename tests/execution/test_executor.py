"""Who solves layers: words for it, and what is refused before any work."""

import importlib.util
import socket
import time

import numpy as np
import pytest
import torch

import fewbit as fb
from fewbit.errors import CalibrationError, ExecutionError, FewbitError, MissingExtraError, RecipeError
from fewbit.execution.carried import Packed, carried, packed, unpacked
from fewbit.execution.executor import SolveTask, parse_executor
from fewbit.execution.in_process import InProcess
from fewbit.execution.ray import Ray
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme
from fewbit.statistics.second_moment import SecondMoment


def test_executors_have_names_and_options():
    assert parse_executor("in-process") == InProcess()
    assert parse_executor({"name": "ray", "workers": 3}) == Ray(workers=3)
    assert parse_executor(Ray(address="auto")) == Ray(address="auto")
    with pytest.raises(RecipeError, match="unknown executor 'rey'; did you mean 'ray'"):
        parse_executor("rey")
    with pytest.raises(RecipeError, match="unknown option of executor 'ray': 'worker'; did you mean 'workers'"):
        parse_executor({"name": "ray", "worker": 3})


def test_without_ray_the_extra_is_named_before_any_work(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    module = torch.nn.Sequential(torch.nn.Linear(8, 8))
    with pytest.raises(MissingExtraError, match=r"needs Ray, which is not installed; pip install 'fewbit\[ray\]'"):
        fb.quantize(module, "w8a16", options=fb.Options(executor="ray"))
    assert type(module[0]) is torch.nn.Linear


@pytest.fixture
def installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name)


@pytest.mark.parametrize("address", ["cluster", "cluster:", "cluster:ray", "ray://cluster:10001", ":6379", "a:70000"])
def test_what_is_no_address_is_refused(installed, address):
    with pytest.raises(ExecutionError, match="is no address of a Ray cluster; give HOST:PORT, or auto"):
        Ray(address=address).require()


def test_an_address_where_nothing_answers_is_refused_at_once(installed):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = time.monotonic()
    with pytest.raises(ExecutionError, match=f"nothing answers at {address} .*refused.*`ray start --head`"):
        Ray(address=address).require()
    assert time.monotonic() - started < 10.0


def test_no_workers_and_empty_parts_are_refused(installed):
    with pytest.raises(ExecutionError, match="0 workers can do nothing; give 1 at least"):
        Ray(workers=0).require()
    with pytest.raises(CalibrationError, match="parts of 0 batches hold nothing; give 1 at least"):
        fb.Calibration(data="self", part=0)


class Failing:
    """An algorithm that finds nothing."""

    name, statistics = "failing", ()

    def __call__(self, weight, statistics, scheme):
        raise FewbitError("there is none")


def test_in_process_a_weight_is_read_when_its_turn_has_come_and_errors_name_the_layer():
    read = []

    def task(name, algorithm):
        def give():
            read.append(name)
            return torch.ones(4, 8), parse_scheme("int8 channel")

        return SolveTask(name, algorithm, {}, give)

    nearest = fb.Rule("a", weight="int8").algorithm
    found = InProcess().solve([task("a", nearest), task("b", Failing()), task("c", nearest)])
    assert next(found).solved_sqnr is None
    assert read == ["a"]
    with pytest.raises(FewbitError, match=r"^b: there is none$"):
        next(found)
    assert read == ["a", "b"]


def test_values_are_carried_to_a_device_and_stay_the_same_objects_where_they_are():
    qtensor = quantize(torch.ones(4, 8), parse_scheme("nvfp4"))
    moment = SecondMoment.identity(8, torch.ones(1))
    given = {"q": (qtensor, [moment]), "n": 3}
    assert carried(given, "cpu") is given
    away = carried(given, "meta")
    moved = (away["q"][0].codes, away["q"][0].scale.codes, away["q"][1][0].total)
    assert {own.device.type for own in moved} == {"meta"}
    assert away["q"][0].scheme is qtensor.scheme
    assert moment.total.device.type == "cpu"
    assert away["n"] == 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.int8, torch.bool])
@pytest.mark.parametrize("shape", [(), (0,), (3, 4)])
def test_tensors_go_as_bytes_and_come_back_in_memory_of_their_own(dtype, shape):
    tensor = (torch.randn(shape) * 3).to(dtype)
    there = packed({"a": (tensor, 1), "b": np.arange(3.0)})
    assert isinstance(there["a"][0], Packed)
    there["a"][0].numbers.flags.writeable = there["b"].flags.writeable = False  # as in Ray's shared memory
    back = unpacked(there)
    assert back["a"][0].dtype == dtype
    assert torch.equal(back["a"][0], tensor)
    back["a"][0].zero_()
    back["b"][:] = 0
    assert torch.equal(unpacked(there)["a"][0], tensor)


def test_a_weight_in_part_of_another_tensor_goes_alone():
    rows = torch.randn(64, 32)[::2].T
    assert packed(rows).numbers.nbytes == 4 * 32 * 32
    assert torch.equal(unpacked(packed(rows)), rows)


def test_the_size_of_parts_is_in_plan_and_report():
    torch.manual_seed(0)
    batches = [torch.randn(4, 16) for _ in range(5)]
    calibration = fb.Calibration(data=batches, part=2)
    result = fb.quantize(torch.nn.Sequential(torch.nn.Linear(16, 16)), "w4a16", calibration=calibration)
    assert result.plan.part == result.report.calibration_part == 2
    assert result.report.to_dict()["calibration_part"] == 2
    assert result.report.executor == "in process"
    data_free = fb.quantize(torch.nn.Sequential(torch.nn.Linear(16, 16)), "w8a16")
    assert data_free.report.calibration_part is None
