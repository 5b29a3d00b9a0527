"""What a report advises: each rule speaks where its figures are there, and is silent where they are not."""

import dataclasses
import math

import numpy as np
import pytest

from fewbit.evaluation.input_profile import input_profile
from fewbit.evaluation.overlap import Overlap
from fewbit.evaluation.quality import Quality
from fewbit.report.advice import RULES, advice

GOOD = Quality(predictions=2000, perplexity=20.1, kl_divergence=0.01, top1_agreement=0.97)
BAD = Quality(predictions=2000, perplexity=40.0, kl_divergence=0.5, top1_agreement=0.7)


def profile(factor=1.0):
    rows = np.random.default_rng(0).standard_normal((32, 128)).astype(np.float32)
    rows[:, 5] *= factor
    return input_profile(rows, None)


@pytest.fixture
def alike(toy):
    """Reports of eight layers that are alike."""

    def made(after=GOOD, *, first=None, forward_seconds=None, overlap=None, output_sqnr=None, **values):
        values = {"output_sqnr": 20.0, "kernel": "fbgemm", **values}
        layers = [toy.layer(f"l{n}", **values) for n in range(8)]
        layers[0] = dataclasses.replace(layers[0], **(first or {}))
        return toy.report(
            layers, after=after, before=after and GOOD, forward_seconds=forward_seconds, overlap=overlap,
            output_sqnr=output_sqnr,
        )  # fmt: skip

    return made


def steps(report):
    return [RULES.index(rule) for rule in RULES for own in advice(report) if own.do == rule.do]


SPEAKING = {
    "unmeasured": (0, {"after": None}, "was not measured"),
    "overlap": (1, {"overlap": Overlap(tokens=8, runs=50, shared=1)}, "2 % of the runs of 8 tokens"),
    "few": (2, {"after": dataclasses.replace(GOOD, predictions=999)}, "999 predictions"),
    "worst": (3, {"after": BAD, "first": {"output_sqnr": 10.0}}, "1 of 8 layers loses more than twice the median"),
    "nearest": (4, {"after": BAD, "algorithm": "nearest"}, "8 layers of few bits are rounded to nearest"),
    "clipped": (6, {"inputs": dataclasses.replace(profile(), clipped=0.01)}, "8 layers clip more than 0.1 %"),
    "outliers": (
        7, {"after": BAD, "inputs": profile(100.0), "becomes": "int4 g64, input int8 token"}, "is channel 5",
    ),
    "solved": (8, {"after": BAD}, "8 layers are solved by gptq already"),
    "slower": (9, {"forward_seconds": (1.0, 2.0), "fast": False}, "2.00 times as long; 8 layers are"),
    "room": (10, {"after": dataclasses.replace(GOOD, kl_divergence=0.001), "bytes_after": 2176}, "0.001 nats"),
}  # fmt: skip


@pytest.mark.parametrize("case", SPEAKING, ids=str)
def test_a_rule_speaks_with_its_figures(alike, case):
    place, values, words = SPEAKING[case]
    found = {own.do: own for own in advice(alike(**values))}
    assert RULES[place].do in found
    assert words in found[RULES[place].do].figures


def test_few_bits_are_those_of_the_scheme_also_where_a_file_stores_bytes(alike):
    unpacked = {"becomes": "int4 g64, input int8 token", "bytes_after": 2176, "algorithm": "nearest"}
    assert 4 in steps(alike(BAD, **unpacked))
    assert 4 not in steps(alike(BAD, **{**unpacked, "becomes": "int8 channel"}))
    of_later = {"becomes": "of a later version", "bytes_after": 2176}
    assert 4 not in steps(alike(BAD, **{**unpacked, "becomes": "int8 channel"}, first=of_later))
    assert 4 in steps(alike(BAD, **{**unpacked, "becomes": "int8 channel"}, first={**of_later, "bytes_after": 1088}))


def test_levels_that_no_weight_uses_speak_for_asymmetric_schemes(alike, toy):
    own = toy.layer("x").histogram
    lopsided = dataclasses.replace(own, used=10)
    assert 5 in steps(alike(BAD, histogram=lopsided))
    assert 5 not in steps(alike(BAD, histogram=lopsided, becomes="int4 g64 asym"))
    assert 5 not in steps(alike(BAD))


def test_a_good_model_needs_nothing(alike):
    assert (
        steps(alike(inputs=profile(), forward_seconds=(1.0, 1.0), overlap=Overlap(tokens=8, runs=500, shared=1))) == []
    )


@pytest.mark.parametrize(
    "values",
    [
        {"after": BAD, "first": {"output_sqnr": 19.0}},
        {"after": GOOD, "first": {"output_sqnr": 10.0}},
        {"forward_seconds": (1.0, 2.0)},
        {"inputs": profile(100.0), "becomes": "int4 g64, input int8 token"},
        {"algorithm": "nearest"},
    ],
)
def test_figures_that_are_half_there_speak_for_nothing_else(alike, values):
    assert not {3, 4, 7, 9} & {*steps(alike(**values))}


def test_models_that_are_no_language_models_go_by_the_output(alike):
    assert 8 in steps(alike(None, output_sqnr=10.0))
    assert 10 in steps(alike(None, output_sqnr=50.0, bytes_after=2176))
    assert steps(alike(None, output_sqnr=30.0)) == []


def test_infinite_and_missing_ratios_are_no_reason_to_fail(toy):
    made = toy.report(
        [toy.layer("a", output_sqnr=math.inf), toy.layer("b", output_sqnr=-math.inf), toy.kept("c")], after=BAD
    )
    assert all(own.figures and own.do and own.why for own in advice(made))
    assert advice(toy.report([toy.kept("c")], before=None, after=None))[0].figures == "Quality was not measured"
