"""Mutated GPTQ and AWQ folders, 2,500 of them: read to what their bytes hold or refused, in bounded memory."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = Path(__file__).with_name("mutated_folders.py")
CASES = 2500


def run(cases, *options):
    """Run the program and return it with its summary."""
    command = [sys.executable, str(PROGRAM), "--cases", str(cases), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done, json.loads(done.stdout)


def test_every_mutated_folder_is_read_to_what_its_bytes_hold_or_refused_by_an_error_of_fewbit():
    summary = run(CASES)[1]
    assert summary["findings"] == []
    assert summary["accepted"] + summary["refused"] == CASES
    # Of a kind that tests something: many get through to the last check, and every check refuses some.
    assert summary["accepted"] > CASES // 25
    assert len(summary["reasons"]) > 30
    assert summary["slowest"] < 2  # seconds; a busy machine takes 0.1


def test_a_reader_that_takes_a_configuration_at_its_word_is_found_out():
    done, summary = run(300, "--believing")
    assert done.returncode == 1
    assert len(summary["findings"]) > 100
