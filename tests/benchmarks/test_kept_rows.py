"""Rows that are kept come back as they were, once each; the table of docs/language-models.md is one of such rows."""

from __future__ import annotations

import importlib
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    yield importlib.import_module
    for name in ("kept_rows", "weight_rows", "language_models"):
        sys.modules.pop(name, None)


def row(kept_rows, scheme="int4 g64", divergence=0.5, **changes):
    figures = {"bits": 4.25, "quality": {"a": [0.25, 0.75, 1234.5], "b": [divergence, 0.5, 2.0]}, "seconds": 9.0,
               "cpu_seconds": 7.4, "peak_mb": 1050.0}  # fmt: skip
    made = kept_rows.KeptRow("smollm2", "text", "HQQ", scheme, "data-free", ["--steps", "3"], figures, {"machine": "x"})
    return replace(made, **changes)


def test_rows_come_back_and_one_measured_again_takes_the_place_of_the_first(script, tmp_path):
    kept_rows = script("kept_rows")
    path = tmp_path / "kept" / "rows.jsonl"
    assert kept_rows.read_kept(path) == []
    first, other, again = (row(kept_rows), row(kept_rows, options=[]), row(kept_rows, divergence=0.25, label="anew"))
    for own in (first, other, again):
        kept_rows.keep(own, path)
    assert kept_rows.read_kept(path) == [other, again]
    assert [own.name for own in path.parent.iterdir()] == ["rows.jsonl"]


def test_a_section_ends_with_the_least_divergence_in_bold(script):
    kept_rows = script("kept_rows")
    best, worst = row(kept_rows, divergence=0.1), row(kept_rows, divergence=0.9, tool="other")
    lines = list(kept_rows.kept_table([[best, worst], []]))
    assert lines[2:] == [
        "| int4 g64 | other, data-free | 4.25 | 0.2500 | 1,234.50 | 0.9000 | 2.00 | 7 | 1,050 |",
        "| int4 g64 | **HQQ, data-free** | **4.25** | **0.2500** | **1,234.50** | **0.1000** | **2.00** | **7** "
        "| **1,050** |",
    ]
    assert all(line.count("|") == lines[0].count("|") for line in lines)


def test_the_table_in_the_documents_is_that_of_the_kept_rows(script):
    lines = list(script("language_models").kept("smollm2-rotated"))
    assert len(lines) > 10
    assert "\n" + "\n".join(lines) + "\n\n" in (ROOT / "docs" / "language-models.md").read_text(encoding="utf-8")


def test_every_kept_row_is_one_that_a_benchmark_can_measure_again(script):
    rows = [*chain.from_iterable(script("language_models").sections()), *script("weight_only").rows()]
    known = {own.identity for own in rows}
    kept = script("kept_rows").read_kept()
    assert kept
    assert {own.identity for own in kept} <= known
