"""Any text is a recipe that says what its tables say, or an error of fewbit that can be read."""

import json
import tomllib

from hypothesis import given, settings
from hypothesis import strategies as st

from fewbit.algorithms import ALGORITHMS
from fewbit.errors import FewbitError
from fewbit.formats import FORMATS
from fewbit.interfaces import LAYER_KINDS
from fewbit.recipe import Recipe

KEYS = ["match", "kind", "weight", "algorithm", "keep", "optional", "input", "wieght", "", "output", "bias", "a b"]
TEXTS = st.one_of(
    st.sampled_from([*LAYER_KINDS, *ALGORITHMS, *FORMATS, "int4 g64 asym", ".*", "(", "[a", "a{9999999999}", "\\d+?"]),
    st.text(max_size=20),
)
VALUES = st.recursive(
    st.one_of(st.booleans(), st.integers(), st.floats(), TEXTS),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=5,
)
LIKELY = {
    "match": TEXTS,
    "kind": st.sampled_from([*LAYER_KINDS, "lineer"]),
    "weight": st.sampled_from([*FORMATS, "int4 g64", "int4 g65 asym", "nf4 g64 double", "int8 chanel"]),
    "algorithm": st.one_of(
        st.sampled_from([*ALGORITHMS, "gtpq"]),
        st.fixed_dictionaries({"name": st.just("gptq")}, optional={"damping": VALUES, "order": TEXTS, "odrer": VALUES}),
    ),
    "bias": st.sampled_from(["float", "int32", "int8"]),
    "keep": st.booleans(),
    "optional": st.booleans(),
}


SOUND = st.one_of(
    st.fixed_dictionaries(
        {"match": st.sampled_from([".*", r".*\.mlp\..*", "(a|b)c?"]), "weight": st.sampled_from(["int4 g64", "nf4"])},
        optional={"optional": st.booleans(), "kind": st.sampled_from(LAYER_KINDS), "algorithm": st.just("nearest")},
    ),
    st.fixed_dictionaries({"kind": st.sampled_from(LAYER_KINDS), "keep": st.just(True)}),
)


@st.composite
def rules(draw):
    """A rule that is in order, but for up to two keys that were left out or got another value."""
    table = draw(SOUND)
    for _ in range(draw(st.sampled_from([0, 0, 1, 2]))):
        key = draw(st.one_of(st.sampled_from([*LIKELY, *KEYS]), st.text(max_size=8)))
        if key in table and draw(st.booleans()):
            del table[key]
        else:
            table[key] = draw(LIKELY[key] if key in LIKELY and draw(st.booleans()) else VALUES)
    return table


def spelt(value):
    """The value in TOML; texts and numbers are those of JSON, nearly."""
    match value:
        case dict():
            return "{" + ", ".join(f"{json.dumps(key)} = {spelt(inner)}" for key, inner in value.items()) + "}"
        case list():
            return "[" + ", ".join(map(spelt, value)) + "]"
        case float():
            return repr(value)
        case _:
            return json.dumps(value)


def recipe_text(tables):
    """The rules as a recipe file."""
    return "\n".join(
        "[[rules]]\n" + "\n".join(f"{json.dumps(key)} = {spelt(value)}" for key, value in table.items())
        for table in tables
    )


def read(text):
    """The recipe, or `None` after an error was looked at."""
    try:
        return Recipe.from_text(text, name="fuzz.toml")
    except FewbitError as error:
        said = "\n".join([str(error), *getattr(error, "__notes__", ())])
        assert said.replace("\n", "").isprintable(), said
        assert 10 < len(said) < 2000
        return None


def agrees(rule, table):
    """Whether the rule says what its table says, as far as both are plain."""
    return (
        rule.match == table.get("match")
        and rule.kind == table.get("kind")
        and rule.keep == table.get("keep", False)
        and rule.optional == table.get("optional", False)
        and rule.bias == table.get("bias", "float")
        and (rule.weight is None) == ("weight" not in table)
    )


@settings(max_examples=1500)
@given(st.lists(rules(), min_size=1, max_size=4))
def test_a_table_of_rules_is_a_recipe_that_says_the_same_or_an_error(tables):
    recipe = read(recipe_text(tables))
    if recipe is not None:
        assert len(recipe.rules) == len(tables)
        assert all(agrees(rule, table) for rule, table in zip(recipe.rules, tables, strict=True))


@settings(max_examples=1000)
@given(st.lists(rules(), min_size=1, max_size=2), st.data())
def test_a_recipe_with_a_slip_of_the_pen_is_what_it_spells_then_or_an_error(tables, data):
    text = recipe_text(tables)
    place = data.draw(st.integers(0, len(text)))
    text = text[:place] + data.draw(st.text(max_size=2)) + text[place + data.draw(st.integers(0, 3)) :]
    recipe = read(text)
    if recipe is not None:
        tables = tomllib.loads(text)["rules"]
        assert all(agrees(rule, table) for rule, table in zip(recipe.rules, tables, strict=True))


@settings(max_examples=500)
@given(st.one_of(st.text(max_size=200), st.text("[]{}=\"'.#\n \\arules0", max_size=200)))
def test_no_other_text_is_a_recipe(text):
    read(text)


def test_the_rules_drawn_are_recipes_often_enough_to_test_something():
    counts = {True: 0, False: 0}

    @settings(max_examples=300, database=None, derandomize=True)
    @given(st.lists(rules(), min_size=1, max_size=2))
    def count(tables):
        counts[read(recipe_text(tables)) is not None] += 1

    count()
    assert min(counts.values()) > 30
