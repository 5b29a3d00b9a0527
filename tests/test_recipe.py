"""Rules and recipes: the order of rules, TOML against Python, and what every mistake is answered with."""

import re

import pytest

import fewbit as fb
from fewbit.errors import FewbitError, NotYetError, RecipeError, SchemeError
from fewbit.interfaces import Layer

LINEAR = Layer("model.layers.0.mlp.up", "linear", (8, 64), "Linear")
HEAD = Layer("lm_head", "head", (320, 64), "Linear")

TOML = """
[[rules]]
kind = "head"
keep = true
[[rules]]
match = '.*\\.mlp\\..*'
weight = "int4 g64 asym"
algorithm = { name = "nearest" }
[[rules]]
match = "never"
kind = "linear"
weight = "e4m3"
algorithm = "nearest"
optional = true
[[rules]]
kind = "conv"
weight = "int8"
input = "int8 static"
bias = "int32"
optional = true
"""
PYTHON = [
    fb.keep(kind="head"),
    fb.Rule(r".*\.mlp\..*", weight="int4 g64 asym", algorithm=fb.Nearest()),
    fb.Rule("never", kind="linear", weight=fb.parse_scheme("e4m3"), optional=True),
    fb.Rule(kind="conv", weight="int8", input="int8 static", bias="int32", optional=True),
]


def becomes(rules, layers):
    from fewbit.planning import resolve

    return [row.becomes for row in resolve("m", layers, [], fb.Recipe(rules), storage_type="float32").rows]


def test_the_first_rule_that_matches_wins():
    narrow, wide = fb.Rule(r".*\.up", weight="int8"), fb.Rule(".*", weight="int4 g64")
    assert becomes([narrow, wide], [LINEAR, HEAD]) == ["int8 channel", "int4 g64"]
    assert becomes([wide, narrow], [LINEAR, HEAD]) == ["int4 g64", "int4 g64"]


def test_a_rule_with_match_and_kind_needs_both():
    rule = fb.Rule(r".*\.up", kind="head", weight="int8")
    assert not rule.matches(LINEAR)
    assert not rule.matches(HEAD)
    assert rule.matches(Layer("a.up", "head", (8, 8), "Linear"))


def test_a_pattern_must_match_the_whole_name():
    assert not fb.Rule("mlp", weight="int8").matches(LINEAR)
    assert not fb.Rule("model", weight="int8").matches(LINEAR)
    assert fb.Rule(r"model\..*", weight="int8").matches(LINEAR)


def test_toml_and_python_make_the_same_recipe():
    assert fb.Recipe.from_text(TOML) == fb.Recipe(PYTHON)


def test_a_toml_file_is_read_and_gives_its_name(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text(TOML, encoding="utf-8")
    assert fb.Recipe.from_toml(path) == fb.Recipe(PYTHON, name="mine.toml")


def test_a_rule_prints_what_it_does():
    assert [str(rule) for rule in PYTHON] == [
        "kind 'head': keep",
        "match '.*\\\\.mlp\\\\..*': int4 g64 asym by nearest",
        "match 'never' and kind 'linear': e4m3 channel by nearest",
        "kind 'conv': int8 channel by nearest, input int8 tensor asym static, bias int32",
    ]


def test_a_bias_stays_float_unless_a_rule_says_otherwise():
    assert [rule.bias for rule in PYTHON] == ["float", "float", "float", "int32"]
    assert fb.Rule("a", weight="int8", bias="float") == fb.Rule("a", weight="int8")


def test_a_rule_without_algorithm_rounds_to_nearest():
    assert fb.Rule(kind="linear", weight="int8").algorithm == fb.Nearest()


# What is wrong -> kind of error, the fact with its value, the remedy (each a pattern of the message).
PYTHON_MISTAKES = {
    "nothing": (fb.Rule, RecipeError, "needs `match`.*or `kind`", r"'\.\*' matches every layer"),
    "nothing to do": (lambda: fb.Rule("a"), RecipeError, "rule 'a' says neither `weight` nor `keep`", "add one"),
    "keep and weight": (
        lambda: fb.Rule("a", weight="int8", keep=True), RecipeError, "rule 'a' says `keep` and also", "drop one"),
    "keep and algorithm": (
        lambda: fb.Rule("a", algorithm="nearest", keep=True), RecipeError, "rule 'a' says `keep` and also", "drop one"),
    "pattern": (
        lambda: fb.keep("(ab"), RecipeError, r"match = '\(ab' is not a regular expression",
        "unterminated .*position 0"),
    "pattern is a number": (lambda: fb.keep(3), RecipeError, "match = 3", "not text"),
    "kind is a list": (lambda: fb.keep(kind=["head"]), RecipeError, r"kind = \['head'\]", "not text"),
    "kind": (
        lambda: fb.keep(kind="linaer"), RecipeError, "unknown kind of layer 'linaer'",
        r"did you mean 'linear'\? known: attention, conv, embedding, head, linear"),
    "weight": (
        lambda: fb.Rule("a", weight="int44"), SchemeError, "unknown number format 'int44'", "did you mean 'int4'"),
    "word in weight": (
        lambda: fb.Rule("a", weight="int4 g64 asim"), SchemeError, "'asim'", "did you mean 'asym'"),
    "empty weight": (lambda: fb.Rule("a", weight=" "), SchemeError, "empty scheme", "write for example 'int4 g64'"),
    "static weight": (
        lambda: fb.Rule("a", weight="int8 static"), RecipeError, "weight = 'int8 static'", "leave out 'static'"),
    "weight is a number": (lambda: fb.Rule("a", weight=4), RecipeError, "weight.*4", "int8"),
    "algorithm": (
        lambda: fb.Rule("a", weight="int8", algorithm="neerest"), RecipeError, "unknown algorithm 'neerest'",
        "did you mean 'nearest'"),
    "algorithm of a later version": (
        lambda: fb.Rule("a", weight="int4", algorithm="awq"), NotYetError, "algorithm 'awq' is not in this version",
        "use one of: nearest"),
    "algorithm is a number": (lambda: fb.Rule("a", weight="int8", algorithm=3), RecipeError, "3", "nearest"),
    "option of an algorithm": (
        lambda: fb.Rule("a", weight="int8", algorithm={"name": "nearest", "order": 1}), RecipeError,
        "unknown option of algorithm 'nearest': 'order'", "known: "),
    "table without the name of an algorithm": (
        lambda: fb.Rule("a", weight="int8", algorithm={"damping": 1}), RecipeError, "algorithm", "nearest"),
    "input is a number": (lambda: fb.Rule("a", weight="int8", input=8), RecipeError, "input.*8", 'input="int8"'),
    "unknown input": (
        lambda: fb.Rule("a", weight="int8", input="int88"), SchemeError, "unknown number format 'int88'", "int8"),
    "input without weight": (lambda: fb.Rule("a", input="int8"), RecipeError, "neither `weight` nor `keep`", "add one"),
    "input of a kept layer": (
        lambda: fb.Rule("a", keep=True, input="int8"), RecipeError, "`keep` and also names a scheme", "drop one"),
    "input per channel": (
        lambda: fb.Rule("a", weight="int8", input="int8 channel"), RecipeError, "a dynamic range is per tensor, token",
        "add 'static'"),
    "input with a float zero point": (
        lambda: fb.Rule("a", weight="int8", input="int8 float-zero"), RecipeError, "zero point .* is a code", "asym"),
    "average of one input": (
        lambda: fb.Rule("a", weight="int8", input="int8 average"), RecipeError, "over batches", "add 'static'"),
    "bias": (
        lambda: fb.Rule("a", weight="int8", bias="int31"), RecipeError, "unknown type of a bias 'int31'",
        r"did you mean 'int32'\? known: float, int32"),
    "empty bias": (lambda: fb.Rule("a", weight="int8", bias=""), RecipeError, "type of a bias", "known: float, int32"),
    "bias is a number": (lambda: fb.Rule("a", weight="int8", bias=32), RecipeError, "bias = 32", "not text"),
    "bias of a kept layer": (
        lambda: fb.Rule("a", keep=True, bias="int32"), RecipeError, "`keep` and also names", "drop one"),
    "transforms": (
        lambda: fb.Recipe([fb.Rule("a", weight="int8")], transforms=["smoothquand"]), RecipeError,
        "unknown transform 'smoothquand'", "did you mean 'smoothquant'"),
    "a recipe without rules": (lambda: fb.Recipe([]), RecipeError, "quantizes nothing", "add one"),
    "a recipe that only keeps": (lambda: fb.Recipe([fb.keep("a")]), RecipeError, "quantizes nothing", "add one"),
    "no rules but text": (lambda: fb.Recipe(["int8"]), RecipeError, "holds rules, not str", "use fewbit.Rule"),
}  # fmt: skip


@pytest.mark.parametrize("case", PYTHON_MISTAKES)
def test_a_mistake_in_python_is_answered_with_fact_value_and_remedy(case):
    make, kind, fact, remedy = PYTHON_MISTAKES[case]
    with pytest.raises(FewbitError) as caught:
        make()
    assert type(caught.value) is kind
    assert re.search(fact, str(caught.value))
    assert re.search(remedy, str(caught.value))


GOOD = 'kind = "linear"\nweight = "int4 g64"\n'
TOML_MISTAKES = {
    "not TOML": ("rules = = 3", RecipeError, "recipe custom is not valid TOML: .*line 1, column 9"),
    "unknown key of a recipe": ("rule = 1", RecipeError, "unknown key in recipe custom: 'rule'; did you mean 'rules'"),
    "unknown key of a rule": (
        f'[[rules]]\n{GOOD}[[rules]]\nkind = "head"\nweigth = "int8"', RecipeError,
        "unknown key in rule 2 of recipe custom: 'weigth'; did you mean 'weight'"),
    "rules is a number": ("rules = 3", RecipeError, r"`rules` must be \[\[rules\]\] tables"),
    "rules is one table": (f"[rules]\n{GOOD}", RecipeError, r"`rules` must be \[\[rules\]\] tables"),
    "no rules": ("", RecipeError, "quantizes nothing"),
    "keep is text": (
        '[[rules]]\nkind = "head"\nkeep = "yes"', RecipeError, "rule 1 .*keep = 'yes' is not true or false"),
    "optional is a number": (
        f"[[rules]]\n{GOOD}optional = 1", RecipeError, "rule 1 .*optional = 1 is not true or false"),
    "weight is a number": (
        '[[rules]]\nkind = "linear"\nweight = 4', RecipeError, 'rule 1 .*weight = 4 is not text; write weight = "int8'),
    "algorithm is a number": (f"[[rules]]\n{GOOD}algorithm = 3", RecipeError, "algorithm"),
    "algorithm is a list": (f'[[rules]]\n{GOOD}algorithm = ["nearest"]', RecipeError, "algorithm"),
    "input is a number": (f'[[rules]]\n{GOOD}input = 8', RecipeError, 'rule 1 .*input = 8 is not text; write input ='),
    "transforms": (f'transforms = ["smoothquand"]\n[[rules]]\n{GOOD}', RecipeError, "unknown transform 'smoothquand'"),
    "transforms is text": (f'transforms = "smoothquant"\n[[rules]]\n{GOOD}', FewbitError, "'smoothquant'"),
    "transforms is a number": (f"transforms = 5\n[[rules]]\n{GOOD}", FewbitError, "transforms.*5"),
}  # fmt: skip


@pytest.mark.parametrize("case", TOML_MISTAKES)
def test_a_mistake_in_toml_is_answered_with_its_place(case):
    text, kind, message = TOML_MISTAKES[case]
    with pytest.raises(kind, match=message):
        fb.Recipe.from_text(text)


@pytest.mark.parametrize(
    ("key", "value"),
    [("weight", '"int44"'), ("match", '"("'), ("input", '"int44"'), ("bias", "32"), ("algorithm", '"awq"')],
)
def test_a_value_that_python_would_refuse_is_noted_with_the_number_of_its_toml_rule(key, value):
    lines = {"kind": '"linear"', "weight": '"int8"', key: value}
    text = f"[[rules]]\n{GOOD}[[rules]]\n" + "\n".join(f"{name} = {setting}" for name, setting in lines.items())
    with pytest.raises(FewbitError) as caught:
        fb.Recipe.from_text(text, name="mine.toml")
    assert caught.value.__notes__ == ["in rule 2 of recipe mine.toml"]


@pytest.mark.parametrize("content", [None, b"\xff\xfe = 1"])
def test_a_recipe_file_that_cannot_be_read_is_named(tmp_path, content):
    path = tmp_path / "r.toml"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RecipeError, match=f"cannot read recipe {re.escape(str(path))}"):
        fb.Recipe.from_toml(path)


def test_a_recipe_file_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_bytes(b"\xef\xbb\xbf" + TOML.encode())
    assert fb.Recipe.from_toml(path) == fb.Recipe(PYTHON, name="mine.toml")


def test_a_file_that_is_no_recipe_by_its_size_is_refused_before_it_is_read(tmp_path):
    path = tmp_path / "r.toml"
    path.write_bytes(b"\xff" * (2 << 20))
    with pytest.raises(RecipeError, match=r"r\.toml has more than 1048576 bytes; is it the right file\?"):
        fb.Recipe.from_toml(path)


def test_a_problem_of_the_whole_recipe_is_noted_with_its_name():
    for text in ("", f'transforms = ["smoothquand"]\n[[rules]]\n{GOOD}'):
        with pytest.raises(FewbitError) as caught:
            fb.Recipe.from_text(text, name="mine.toml")
        assert caught.value.__notes__ == ["in recipe mine.toml"]


OPTIONS = {
    "damping as text": ('damping = "x"', "gptq: damping 'x' is outside"),
    "damping that is NaN": ("damping = nan", "gptq: damping nan is outside"),
    "damping that is true": ("damping = true", "gptq: damping True is outside"),
    "damping as a date": ("damping = 2020-01-01", "gptq: damping datetime.date(2020, 1, 1) is outside"),
    "an order that is a list": ('order = ["none"]', "gptq: order ['none'] is none of auto"),
    "an order that is a table": ("order = {a = 1}", "gptq: order {'a': 1} is none of auto"),
    "sweeps that are true": ("sweeps = true", "gptq: sweeps True is no number of times"),
    "sweeps with a point": ("sweeps = 1.0", "gptq: sweeps 1.0 is no number of times"),
    "fewer than no sweeps": ("sweeps = -1", "gptq: sweeps -1 is no number of times"),
    "a flag that is text": ('relative = "no"', "gptq: relative = 'no' is not true or false"),
    "a flag that is a number": ("fit = 0", "gptq: fit = 0 is not true or false"),
    "a flag that is a list": ("search = []", "gptq: search = [] is not true or false"),
}


@pytest.mark.parametrize("case", OPTIONS)
def test_an_option_of_the_wrong_type_is_answered_with_its_value_and_place(case):
    option, message = OPTIONS[case]
    with pytest.raises(RecipeError, match=re.escape(message)) as caught:
        fb.Recipe.from_text(f'[[rules]]\n{GOOD}algorithm = {{name = "gptq", {option}}}', name="mine.toml")
    assert caught.value.__notes__ == ["in rule 1 of recipe mine.toml"]


PATTERNS = {
    "a repetition without end": ("a{99999999999999999999}", "the repetition number is too large"),
    "groups without end": ("(" * 8_000, "maximum recursion depth exceeded"),
    "a group that is not there": (r"(a)\2", "invalid group reference"),
}


@pytest.mark.parametrize("case", PATTERNS)
def test_a_pattern_that_no_engine_takes_is_an_error(case):
    pattern, message = PATTERNS[case]
    with pytest.raises(RecipeError, match=f"is not a regular expression: {re.escape(message)}") as caught:
        fb.keep(pattern)
    assert len(str(caught.value)) < 300


def test_a_pattern_that_a_later_python_may_read_otherwise_is_taken_without_a_warning():
    assert fb.Rule("[[a]", weight="int8").matches(Layer("a", "linear", (8, 8), "Linear"))


@pytest.mark.parametrize("value", ["x" * 100_000, ["x" * 100_000], {"x": "y" * 100_000}])
@pytest.mark.parametrize("key", ["match", "kind", "weight", "input", "bias", "algorithm"])
def test_a_long_value_is_not_repeated_whole(key, value):
    if key == "match" and isinstance(value, str):
        value = f"({value}"
    with pytest.raises(FewbitError) as caught:
        fb.Rule(**({"match": "a", "weight": "int8"} | {key: value}))
    assert len(str(caught.value)) < 400
