"""Presets: what each name means, and what a name that is none is answered with."""

from pathlib import Path

import pytest

from fewbit.errors import RecipeError
from fewbit.interfaces import Layer
from fewbit.presets import PRESETS, parse_recipe, preset
from fewbit.recipe import Recipe
from fewbit.rule import Rule
from fewbit.schemes.notation import input_scheme_to_text

#: What the design writes about each: bits of a weight, group size (`None`: a scale for each channel), symmetry.
MEANING = {
    "w8a16": (8, None, True),
    "w4a16": (4, 128, True),
    "w4a16-asym": (4, 128, False),
    "w3a16": (3, 128, True),
    "w2a16": (2, 128, True),
    "fp8a16": (8, None, True),
    "w8a8": (8, None, True),
    "w8a8-static": (8, None, True),
    "w4a8": (4, 128, True),
    "fp8": (8, None, True),
    "fp8-static": (8, None, True),
    "mxfp4a16": (4, 32, True),
    "nvfp4a16": (4, 16, True),
    "nf4": (4, 64, True),
    "mxfp4": (4, 32, True),
    "mxfp8": (8, 32, True),
    "nvfp4": (4, 16, True),
    "fp16": (16, None, True),
    "bf16": (16, None, True),
}
#: What it writes about inputs.
INPUTS = {
    "w8a8": "int8 token asym", "w8a8-static": "int8 tensor asym static", "w4a8": "int8 token asym",
    "fp8": "e4m3 token", "fp8-static": "e4m3 tensor static", "fp16": "fp16", "bf16": "bf16",
    "mxfp4": "mxfp4", "mxfp8": "mxfp8", "nvfp4": "nvfp4",
}  # fmt: skip


def winner(recipe, kind):
    layer = Layer("a.b", kind, (8, 128), "Linear")
    return next(rule for rule in recipe.rules if rule.matches(layer))


def test_the_table_of_this_test_names_every_preset():
    assert set(MEANING) == set(PRESETS)


@pytest.mark.parametrize("name", MEANING)
def test_a_preset_means_what_its_name_says(name):
    scheme = winner(preset(name), "linear").weight
    bits, size, symmetric = MEANING[name]
    assert scheme.format.bits == bits
    assert getattr(scheme.granularity, "size", None) == size
    # The one that is per tensor throughout is vLLM's FP8; casts have no scale to share.
    whole = name == "fp8-static" or bits == 16
    assert scheme.granularity.name == (f"g{size}" if size else "tensor" if whole else "channel")
    assert scheme.scaled is (bits < 16)
    assert scheme.symmetric is symmetric
    assert (scheme.format.name == "e4m3") is (name.startswith("fp8") or name == "mxfp8")


@pytest.mark.parametrize("name", MEANING)
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_bare_names_round_the_inputs_too_and_a16_does_not(name, kind):
    given = winner(preset(name), kind).input
    assert (given is None) is ("a16" in name or name == "nf4")
    assert (None if given is None else input_scheme_to_text(given)) == INPUTS.get(name)


@pytest.mark.parametrize("name", MEANING)
@pytest.mark.parametrize("kind", ["head", "embedding"])
def test_every_preset_keeps_head_and_embedding(name, kind):
    assert winner(preset(name), kind).keep


@pytest.mark.parametrize("name", MEANING)
def test_presets_adapt_bear_their_name_and_may_match_nothing(name):
    recipe = preset(name)
    assert recipe.adapts
    assert recipe.name == name
    assert all(rule.optional for rule in recipe.rules)


def test_a_misspelled_preset_is_answered_with_the_right_one():
    with pytest.raises(
        RecipeError, match="unknown preset 'w4a61'; did you mean 'w4a16'\\? known: bf16, fp16, fp8, fp8-static, "
    ):
        preset("w4a61")


def test_a_recipe_is_taken_as_it_is():
    recipe = Recipe([Rule(kind="linear", weight="int8")])
    assert parse_recipe(recipe) is recipe


@pytest.mark.parametrize("kind", [str, Path])
def test_a_path_is_read_as_toml(tmp_path, kind):
    path = tmp_path / "mine.toml"
    path.write_text('[[rules]]\nkind = "linear"\nweight = "int8"\n', encoding="utf-8")
    recipe = parse_recipe(kind(path))
    assert recipe == Recipe([Rule(kind="linear", weight="int8")], name="mine.toml")
    assert not recipe.adapts


def test_a_path_object_is_a_file_whatever_its_ending(tmp_path):
    with pytest.raises(RecipeError, match=r"cannot read recipe .*w4a16"):
        parse_recipe(tmp_path / "w4a16")


def test_a_list_of_rules_is_refused_with_the_remedy():
    with pytest.raises(RecipeError, match="Recipe"):
        parse_recipe([Rule(kind="linear", weight="int8")])
