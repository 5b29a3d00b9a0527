"""SQNR in dB against its formula, in every array framework, and sizes."""

import math

import numpy as np
import pytest

from fewbit.evaluation.fidelity import Fidelity, decibels, fidelity
from fewbit.evaluation.size import bytes_on_disk, megabytes


def test_sqnr_is_its_formula_in_float64(xp):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(64, 96)).astype(np.float32)
    q = x + 0.01 * generator.normal(size=x.shape).astype(np.float32)
    wide, error = x.astype(np.float64), x.astype(np.float64) - q.astype(np.float64)
    expected = 10 * math.log10((wide**2).sum() / (error**2).sum())
    # Frameworks add 6144 float64 numbers in their own order: less than 6144 * 2^-53 of each sum.
    assert fidelity(xp.from_numpy(x), xp.from_numpy(q)).sqnr == pytest.approx(expected, abs=1e-10)


def test_sqnr_does_not_overflow_in_float16():
    x = np.full((300, 300), 60000.0, dtype=np.float16)
    assert fidelity(x, (x * np.float16(0.5)).astype(np.float16)).sqnr == pytest.approx(20 * math.log10(2), abs=1e-10)


def test_sqnr_of_arrays_that_are_equal_is_infinite():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert fidelity(x, x) == Fidelity(math.inf, (math.inf, math.inf))


def test_an_array_of_zeros_loses_nothing_and_has_no_row_to_speak_of():
    zeros = np.zeros((2, 3), np.float32)
    assert fidelity(zeros, zeros) == Fidelity(math.inf, None)


def test_the_spread_leaves_out_a_tenth_of_the_rows_at_both_ends(xp):
    # Row r of 21 has the error 2^-r of each number: two rows are a tenth. Rows of zeros are none.
    x = np.concatenate([np.ones((21, 8), np.float32), np.zeros((4, 8), np.float32)])
    q = x - np.concatenate([np.float32(2.0) ** -np.arange(21), np.zeros(4)]).astype(np.float32)[:, None]
    shuffled = np.random.default_rng(0).permutation(len(x))
    low, high = fidelity(xp.from_numpy(x[shuffled]), xp.from_numpy(q[shuffled])).rows
    # Powers of two: the ratios are exact, the logarithm may be an ulp off.
    assert low == pytest.approx(20 * math.log10(2**2), abs=1e-13)
    assert high == pytest.approx(20 * math.log10(2**18), abs=1e-12)


def test_rows_are_the_same_however_they_are_cut(monkeypatch):
    generator = np.random.default_rng(0)
    x = generator.normal(size=(37, 24)).astype(np.float32)
    q = x + 0.01 * generator.normal(size=x.shape).astype(np.float32)
    whole = fidelity(x, q)
    monkeypatch.setattr("fewbit.evaluation.fidelity.numbers_at_once", lambda _: 5 * 24)
    assert fidelity(x, q) == whole


@pytest.mark.parametrize(
    ("signal", "noise", "expected"),
    [(1.0, 1.0, 0.0), (1.0, 10.0, -10.0), (1000.0, 1.0, 30.0), (5.0, 0.0, math.inf), (0.0, 3.0, -math.inf)],
)
def test_decibels_are_ten_times_the_logarithm_of_the_ratio(signal, noise, expected):
    # log10 of a power of ten is exact in every libm that matters, or one ulp off.
    assert decibels(signal, noise) == pytest.approx(expected, abs=1e-13)


def test_the_size_of_a_folder_is_that_of_its_weight_files(tmp_path):
    (tmp_path / "model-1.safetensors").write_bytes(b"x" * 10)
    (tmp_path / "model-2.safetensors").write_bytes(b"x" * 7)
    (tmp_path / "report.html").write_bytes(b"x" * 100)
    assert bytes_on_disk(tmp_path) == 17
    assert bytes_on_disk(tmp_path / "report.html") == 100


@pytest.mark.parametrize(
    ("size", "words"),
    [
        (0, "0.0 kB"),
        (99_949, "99.9 kB"),
        (100_000, "100.0 kB"),
        (1_000_000, "1.0 MB"),
        (12_345_678, "12.3 MB"),
        (12_345_678_901, "12.3 GB"),
    ],
)
def test_sizes_are_said_in_units_of_a_thousand(size, words):
    assert megabytes(size) == words
