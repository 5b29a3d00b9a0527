"""Recipes as TOML text: what is written reads back as the same rules."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

import fewbit as fb
from fewbit.errors import RecipeError
from fewbit.recipe_text import pattern_of, recipe_text

RULES = [
    fb.keep(kind="head", optional=True),
    fb.Rule(r"a\.(0|1)\.it's", weight="int4 g64 asym", algorithm=fb.Gptq(order="none", guided=True, damping=0.02)),
    fb.Rule(kind="linear", weight="int8", input="int8 static", output="int8 static", bias="int32"),
    fb.Rule(kind="attention", input="int8"),
    fb.Rule('quoted "name"', weight="q4_k", algorithm=fb.Nearest(weighted=True)),
]


def test_rules_transforms_and_corrections_read_back():
    recipe = fb.Recipe(
        RULES,
        transforms=["batchnorm", {"name": "equalization", "replace_relu6": True}],
        corrections=[{"name": "bias", "means": "batchnorm"}],
    )
    read = fb.Recipe.from_text(recipe_text(recipe))
    assert read.rules == recipe.rules
    assert (read.transforms, read.corrections) == (recipe.transforms, recipe.corrections)


def test_a_preset_is_refused_since_it_adapts():
    from fewbit.presets import preset

    with pytest.raises(RecipeError, match="w4a16 is a preset, which adapts to the model"):
        recipe_text(preset("w4a16"))


PART = st.sampled_from(["0", "1", "12", "up", "h.0", "a+b", "x1", "q_proj"])


@given(st.lists(st.lists(PART, min_size=1, max_size=4).map(".".join), min_size=2, max_size=8, unique=True), st.data())
def test_a_pattern_matches_its_names_and_no_others(names, data):
    some = data.draw(st.lists(st.sampled_from(names), min_size=1, unique=True))
    pattern = pattern_of(some)
    assert [name for name in names if re.fullmatch(pattern, name)] == [name for name in names if name in some]
