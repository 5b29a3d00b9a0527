"""Damaged checkpoints of every format, 10,000 of them: read to what their bytes hold, or refused, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("mutated_checkpoints.py")
KINDS = {"gptq", "awq", "compressed-tensors", "gguf", "matrix", "legacy"}


def run(cases, *options):
    """Run the program and return its exit code and its summary."""
    command = [sys.executable, str(PROGRAM), "--cases", str(cases), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done.returncode, json.loads(done.stdout)


def test_every_damaged_checkpoint_is_read_to_what_its_bytes_hold_or_refused_by_an_error_of_fewbit(pytestconfig):
    cases = pytestconfig.getoption("--mutations")
    summary = run(cases)[1]
    assert summary["findings"] == []
    assert sum(summary["kinds"].values()) == cases
    assert sum(summary["accepted"].values()) + summary["refused"] == cases
    assert summary["slowest"] < 2  # seconds of the processor; 0.2 are usual
    if cases >= 10_000:  # of a kind that tests something: every lie is told, and of every kind some get through
        assert len(summary["lies"]) > 120
        assert summary["loaded"].keys() == KINDS
        assert min(summary["loaded"].values()) > cases // 200
        assert len(summary["reasons"]) > 250


def test_readers_that_take_a_checkpoint_at_its_word_are_found_out():
    status, summary = run(300, "--believing")
    assert status == 1
    assert len(summary["findings"]) > 150
    number = summary["findings"][0].split()[1].rstrip(":")
    assert run(1, "--first", number)[1]["findings"] == []
