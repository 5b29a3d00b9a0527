"""benchmarks/numerics.py times what it says, and says what it could not time."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fewbit.qtensor import fake_quantize, quantize
from fewbit.schemes.notation import parse_scheme

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "numerics.py"


@pytest.fixture
def script(monkeypatch):
    spec = importlib.util.spec_from_file_location("numerics_benchmark", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, spec.name, module)  # dataclasses look their module up
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "keep_freed_memory", lambda: False)  # would last beyond the test
    return module


def values():
    return np.random.default_rng(0).normal(size=(300, 960)).astype(np.float32)  # more than one slice


@pytest.mark.parametrize(
    "text", ["int8 channel", "int4 g64 asym", "int8 tensor", "e4m3 channel", "mxfp4", "nvfp4", "nf4 g100"]
)
def test_what_is_timed_gives_what_quantize_gives(text, script):
    scheme, weight = parse_scheme(text), values()
    expected = quantize(weight, scheme)
    results = (expected.codes, expected.dequantize(), expected.dequantize(), fake_quantize(weight, scheme))
    found = script.operations(scheme, weight)
    for (name, operation), result in zip(found.items(), results, strict=True):
        np.testing.assert_array_equal(operation.function(*operation.arguments), result, err_msg=name, strict=True)
        assert operation.copied.shape == weight.shape


def test_a_search_is_timed_on_fewer_rows_beside_a_copy_of_them(script):
    operation = script.operations(parse_scheme("ternary g64"), values())["fake-quantize"]
    assert operation.copied is operation.arguments[0]
    assert operation.copied.shape == (5, 960)


def test_the_table_and_the_file_hold_the_same_rows(script, tmp_path, capsys):
    words = ["--size", "64", "--repeats", "1", "--backends", "numpy", "torch", "--schemes", "int4 g64", "nvfp4"]
    script.main([*words, "--json", str(tmp_path / "rows.json")])
    header, _, *lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert header.startswith("| scheme | backend | copy, ms | encode | decode |")
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [tuple(line.split(" | ")[:2]) for line in lines] == [(f"| {row['scheme']}", row["backend"]) for row in rows]
    assert all(min(row["ratios"].values()) > 0 for row in rows)


def test_a_backend_that_is_not_installed_is_left_out_with_the_reason(script, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "jax", None)
    assert [backend.name for backend in script.available(["numpy", "jax"])] == ["numpy"]
    assert "Without jax: " in capsys.readouterr().out


def test_without_a_compiler_torch_compile_runs_aot_eager_and_says_so(script, monkeypatch):
    monkeypatch.setattr(script.shutil, "which", lambda name: None)
    backend = script.compiled_backend()
    assert backend.name == "torch.compile, aot_eager (no C++ compiler)"
    assert backend.compiled(lambda x: x + 1)(backend.array(np.zeros(2))).tolist() == [1.0, 1.0]


def test_a_4096_x_14336_matrix_takes_its_codes_and_less_than_a_gigabyte(tmp_path):
    words = ["--memory", "--schemes", "int8 channel", "--json", str(tmp_path / "rows.json")]
    subprocess.run([sys.executable, str(SCRIPT), *words], check=True, capture_output=True)
    (row,) = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert 4096 * 14336 < row["extra_bytes"] < 10**9
