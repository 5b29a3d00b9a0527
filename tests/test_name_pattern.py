"""Regular expressions for names: those of recipes and checkpoints match as `re` has it, catastrophes end at once."""

import re
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.errors import CheckpointError, RecipeError
from fewbit.name_pattern import LONGEST, NamePattern

USUAL = (
    r".*\.mlp\..*", r"model\.layers\.[0-9]+\.self_attn\.(q|k|v|o)_proj", r"^lm_head$", r".*(gate|up|down)_proj.*",
    r"(?i).*EMBED.*", r"(?!.*lm_head).*", r".*\.(?:[02468]|1[02468])\..*", r"model\.(layers\.\d++\.)+mlp.*",
    r"(?:.*\.)?head", r".*layers.*mlp.*experts.*(down|up)_proj", r".*", r"model\.layers\.\d{1,2}\..*", r"0|2\.1",
    r"(foo|bar)+\.x",
)  # fmt: skip
NAMES = ("model.layers.0.self_attn.q_proj", "model.layers.60.mlp.experts.255.down_proj", "lm_head", "foobar.x", "", "0")
#: Each takes Python's `re` hours or ages for some name of 60 characters.
CATASTROPHES = (
    "(a+)+b", "(a*)*b", "(a|a)*b", "(a|aa)+b", "(.*.*)*b", "((a*)*)*b", r"(\w+\.?)+!", "(?=(a+)+b).*", "(a?){0,60}b",
    "(?:(?:a{0,100}){0,100}){0,100}b", "(a{1,2}){1,60}b", "(?:a?){4000000000}", "(?:){4000000000}", "(?i:aa|Aa)+b",
    "(?>(a+)+b)", "(x|(a+)+)b", "(.*)+(.*)+b", "(?(1)a|(a+)+)b",
)  # fmt: skip
NAME = "a" * 60


def pattern(text):
    return NamePattern.of(text, "it", RecipeError)


@pytest.mark.parametrize("text", USUAL)
def test_a_pattern_that_models_need_matches_as_re_has_it(text):
    for name in NAMES:
        assert pattern(text).fullmatch(name) == bool(re.fullmatch(text, name))
        assert pattern(text).match(name) == bool(re.match(text, name))


@pytest.mark.parametrize("text", CATASTROPHES)
def test_a_catastrophic_pattern_is_refused_before_it_is_tried(text):
    started = time.process_time()
    with pytest.raises(CheckpointError, match=r"^`targets` holds a pattern that repeats what has a repeat or a choice"):
        NamePattern.of(text, "`targets` holds a pattern that", CheckpointError)
    assert time.process_time() - started < 1


@pytest.mark.parametrize("text", [".*" * 12 + "b", "a?" * 60 + "a" * 60 + "b", "(a|a)" * 60 + "b", "(.{0,8}){0,8}b"])
def test_too_many_repeats_in_a_row_are_refused_for_a_long_name_and_not_for_a_short_one(text):
    started = time.process_time()
    with pytest.raises(RecipeError, match=r"more than 10,000,000 ways to match 'aaaa.* use fewer repeats"):
        pattern(text * 2).fullmatch(NAME)
    assert time.process_time() - started < 1


def test_a_pattern_that_is_slow_on_each_of_many_names_is_refused_within_a_second():
    slow, started = pattern(r".*.*.*.*b"), time.process_time()
    with pytest.raises(RecipeError, match=r"has taken 0\.[0-9]+ s, up to 'aaaa.*; use fewer repeats"):
        list(map(slow.match, [NAME] * 10_000))
    assert time.process_time() - started < 1


def test_a_pattern_of_the_usual_kind_may_match_any_number_of_names():
    usual = pattern(r".*layers.*mlp.*down.*")
    assert sum(usual.fullmatch(f"model.layers.{n}.mlp.experts.{n % 256}.down_proj") for n in range(50_000)) == 50_000


def test_a_pattern_of_endless_length_is_refused():
    with pytest.raises(
        RecipeError, match=f"it has {LONGEST + 1} characters; regular expressions of more than {LONGEST}"
    ):
        pattern("a" * (LONGEST + 1))


ATOMS = st.sampled_from(["a", "b", ".", "[ab]", r"\w", "^", "$", r"\b", "(?=a)", "(?!b)", "(?<=a)", ""])


def wider(inner):
    repeats = st.sampled_from(["*", "+", "?", "{2}", "{0,3}", "{2,40}", "*?", "++"])
    return st.one_of(
        st.tuples(inner, repeats).map(lambda own: f"(?:{own[0]}){own[1]}"),
        st.tuples(inner, inner).map("".join),
        st.tuples(inner, inner).map(lambda own: f"({own[0]}|{own[1]})"),
    )


@settings(max_examples=600, deadline=None)
@given(st.recursive(ATOMS, wider, max_leaves=8), st.text("ab", min_size=0, max_size=40))
def test_any_pattern_is_refused_or_matches_as_re_has_it_in_bounded_time(text, name):
    started = time.process_time()
    try:
        found = pattern(text).fullmatch(name)
    except RecipeError:
        assert time.process_time() - started < 1
        return
    assert time.process_time() - started < 1
    assert found == bool(re.fullmatch(text, name))
