"""Mutated safetensors and GGUF headers, 20,000 each: read to something consistent or refused, in bounded memory."""

import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("mutated_headers.py")
CASES = 20_000


@pytest.fixture
def cases(monkeypatch):
    """The program's source of cases; what it imports lies beside it."""
    monkeypatch.syspath_prepend(PROGRAM.parent)
    yield importlib.import_module("mutated_headers").cases
    for name in ("mutated_headers", "mutations", "genuine_files"):
        del sys.modules[name]


def run(kind, cases, *options):
    """Run the program and return it with its summary."""
    command = [sys.executable, str(PROGRAM), kind, "--cases", str(cases), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stderr
    return done, json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_every_mutated_header_is_read_consistently_or_refused_by_an_error_of_fewbit(kind):
    summary = run(kind, CASES)[1]
    assert summary["findings"] == []
    assert summary["accepted"] + summary["refused"] == CASES
    # Of a kind that tests something: many get through to the last check, and every check refuses some.
    assert summary["accepted"] > CASES // 25
    assert summary["confirmed"] == summary["accepted"] // 10
    assert len(summary["reasons"]) > 30
    assert summary["slowest"] < 2  # seconds; a busy machine takes 0.06


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_case_follows_from_its_number_alone(cases, kind):
    whole = dict(cases(kind, 0, 60))
    assert dict(cases(kind, 57, 1)) == {57: whole[57]}
    assert len(set(whole.values())) > 50
    assert dict(cases(kind, 57, 1, seed=1)) != {57: whole[57]}


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_readers_that_take_a_header_at_its_word_are_found_out(kind):
    done, summary = run(kind, 200, "--believing")
    assert done.returncode == 1
    assert len(summary["findings"]) > 50
    number = summary["findings"][0].split()[1].rstrip(":")
    assert run(kind, 1, "--first", number, "--believing")[1]["findings"] == summary["findings"][:1]
    assert run(kind, 1, "--first", number)[1]["findings"] == []
