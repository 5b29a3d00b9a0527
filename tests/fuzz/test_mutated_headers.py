"""Mutated safetensors and GGUF headers, 20,000 each: read to something consistent or refused, in bounded memory."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("mutated_headers.py")
CASES = 20_000


@pytest.fixture(scope="module")
def program():
    """The program as a module."""
    spec = importlib.util.spec_from_file_location("mutated_headers", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # its dataclasses look themselves up there
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_every_mutated_header_is_read_consistently_or_refused_by_an_error_of_fewbit(kind):
    done = subprocess.run(
        [sys.executable, PROGRAM, kind, "--cases", str(CASES)], capture_output=True, text=True, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    summary = json.loads(done.stdout)
    assert summary["findings"] == []
    assert summary["accepted"] + summary["refused"] == CASES
    # Of a kind that tests something: many get through to the last check, and every check refuses some.
    assert summary["accepted"] > CASES // 25
    assert summary["confirmed"] == summary["accepted"] // 10
    assert len(summary["reasons"]) > 30
    assert summary["slowest"] < 2  # seconds; a busy machine takes 0.06


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_case_follows_from_its_number_alone(program, kind):
    whole = dict(program.cases(kind, 0, 60))
    assert dict(program.cases(kind, 57, 1)) == {57: whole[57]}
    assert len(set(whole.values())) > 50
    assert dict(program.cases(kind, 57, 1, seed=1)) != {57: whole[57]}


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
def test_a_reader_that_does_not_check_is_found_out(program, kind, monkeypatch, tmp_path):
    def believes_the_header(content):
        if kind == "safetensors":
            text, data = program._json_of(content)
            for entry in json.loads(text).values():
                begin, end = entry["data_offsets"]
                assert len(data[begin:end]) == end - begin
        else:
            (tmp_path / "m").write_bytes(content)
            program.gguf.GGUFReader(tmp_path / "m")

    monkeypatch.setitem(program.CHECKS, kind, (believes_the_header, lambda path: None))
    findings = program.run(kind, 0, 200).findings
    assert len(findings) > 50
    number = int(findings[0].split()[1].rstrip(":"))
    assert program.run(kind, number, 1).findings != []


def test_a_reader_that_allocates_on_the_word_of_a_header_is_found_out():
    code = (
        f"import importlib.util, sys\nspec = importlib.util.spec_from_file_location('m', {str(PROGRAM)!r})\n"
        "m = sys.modules['m'] = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(m)\n"
        "m.limit_memory(m.MEMORY)\nbytearray(m.MEMORY // 2)\n"
        "try:\n    bytearray(m.MEMORY)\nexcept MemoryError:\n    sys.exit(3)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 3
