"""The most memory that a process has held: what the kernel says of this one, not of the one that spawned it."""

import json
import subprocess
import sys

import pytest

from fewbit.evaluation import peak_memory as module
from fewbit.evaluation.peak_memory import peak_memory

linux = pytest.mark.skipif(sys.platform != "linux", reason="VmHWM is a figure of Linux")


def measured(code):
    run = subprocess.run(
        [sys.executable, "-c", "import json; from fewbit.evaluation.peak_memory import peak_memory\n" + code],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return json.loads(run.stdout)


@linux
def test_what_was_held_and_given_back_counts():
    before, after = measured(
        "before = peak_memory()\n"
        "held = b'x' * 300_000_000\n"
        "del held\n"
        "print(json.dumps([before, peak_memory()]))"
    )  # fmt: skip
    # The kernel counts pages in batches, and nothing else here takes many.
    assert 0.99 * 300_000_000 <= after - before < 310_000_000


@linux
def test_a_spawned_process_does_not_count_what_its_parent_held():
    held = b"x" * 300_000_000
    own = measured("print(json.dumps(peak_memory()))")
    assert peak_memory() >= len(held)
    assert own < len(held)


def test_a_system_without_that_line_answers_too(monkeypatch, tmp_path):
    exact = peak_memory()
    monkeypatch.setattr(module, "_STATUS", tmp_path / "nowhere")
    # ru_maxrss is never below the peak of the process itself, but for pages counted in between.
    assert module.peak_memory() >= exact * 0.99


def test_a_system_that_says_nothing_gives_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(module, "_STATUS", tmp_path / "nowhere")
    monkeypatch.setitem(sys.modules, "resource", None)
    assert module.peak_memory() is None
