"""Rules for the products inside attention: what a plan says of them, what a run measures, and what is refused."""

from collections.abc import Sequence

import pytest
import torch
from torch import nn
from torch.nn import functional

import fewbit as fb
from fewbit.errors import CalibrationError, FewbitError, PlanError, RecipeError
from fewbit.frontends.torch.rounded_product import RoundedProduct
from fewbit.schemes.notation import parse_input_scheme

X = torch.randn(3, 6, 16, generator=torch.Generator().manual_seed(0))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.project, self.out = nn.Linear(16, 48), nn.Linear(16, 16)

    def forward(self, x):
        return self.out(functional.scaled_dot_product_attention(*self.project(x).chunk(3, -1)))


class Net(nn.Module):
    """Two blocks."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = Attention(), Attention()

    def forward(self, x):
        return self.second(torch.relu(self.first(x)))


def net():
    return Net().eval()


def attention(text="int8", match=None, **more):
    return fb.Rule(match, kind="attention", input=text, **more)


NAMES = [f"{own}.{product}" for own in ("first", "second") for product in ("query_key", "probabilities_value")]


# The plan.


def test_the_plan_has_a_row_for_each_product_and_not_a_byte_more():
    linear = fb.Rule(kind="linear", weight="int8")
    without = fb.plan(net(), fb.Recipe([linear]))
    made = fb.plan(net(), fb.Recipe([linear, attention("int8 static", "first.*")]), batch=X)
    assert made.problems == ()
    rows = {row.layer.name: row for row in made.rows if row.layer.kind == "attention"}
    assert list(rows) == NAMES
    assert [row.becomes for row in rows.values()] == ["operands int8 tensor asym static"] * 2 + ["float"] * 2
    assert rows["second.query_key"].notes == ("no rule matches",)
    assert (made.bytes_before, made.bytes_after) == (without.bytes_before, without.bytes_after)
    line = next(line for line in str(made).splitlines() if line.startswith("first.query_key"))
    assert line.split() == ["first.query_key", "operands", "int8", "tensor", "asym", "static", "0", "0"]


def test_without_a_rule_for_them_products_are_not_looked_for():
    made = fb.plan(net(), fb.Recipe([fb.Rule(".*", weight="int8", input="int8")]))
    assert {row.layer.kind for row in made.rows} == {"linear"}


def test_a_rule_for_weights_leaves_products_to_the_rules_after_it():
    rules = [fb.keep("second.*"), fb.Rule(".*", weight="int8"), attention()]
    made = fb.plan(net(), fb.Recipe(rules), batch=X)
    assert [row.layer.name for row in made.rounded_products] == NAMES[:2]
    assert {row.notes for row in made.rows if row.layer.name in NAMES[2:]} == {("kept by rule 'second.*'",)}


def test_the_plan_hints_that_no_integer_kernel_multiplies_activations():
    made = fb.plan(net(), fb.Recipe([attention()]), batch=X)
    assert made.hints == (
        "first.query_key and 3 more: float32 product, not faster than float: no integer kernel multiplies two "
        "activations",
    )


# What the rules refuse.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"weight": "int8", "input": "int8"}, "`weight` = 'int8', and a product inside attention has no weight"),
        ({"input": "int8", "output": "int8"}, "`output` = 'int8', and a product inside attention has no weight, no"),
        ({"input": "int8", "bias": "int32"}, "`bias` = 'int32', and a product inside attention has no weight, no bias"),
        ({"input": "int8", "algorithm": "gptq"}, "`algorithm` = 'gptq', and .*; give `input`, which is for both"),
        ({}, "rule 'attention' says neither `input` nor `keep`; add one"),
        ({"input": "int8 g8 static"}, "static ranges are per tensor or channel, not 'g8'; drop static"),
        ({"input": "int8 token static"}, "static ranges are per tensor or channel, not 'token'; drop static"),
        ({"input": "int8 channel"}, "a dynamic range is per tensor, token or group; or add 'static'"),
        ({"input": "int8 average"}, "an average is taken over batches; add 'static'"),
        ({"input": "e4m3 asym"}, "takes no zero point"),
    ],
)
def test_what_no_product_can_have_is_refused_by_the_rule(given, message):
    with pytest.raises(FewbitError, match=message):
        fb.Rule(kind="attention", **given)


def test_a_layer_with_a_weight_still_needs_a_scheme_for_it():
    with pytest.raises(RecipeError, match="rule 'linear' says neither `weight` nor `keep`; add one"):
        fb.Rule(kind="linear", input="int8")


def test_ranges_by_channel_are_a_problem_with_the_remedy():
    made = fb.plan(net(), fb.Recipe([attention("int8 channel static")]), batch=X)
    assert made.problems == (
        "first.query_key and 3 more: operands int8 channel asym static: those of attention have no channels of their "
        "own; use tensor",
    )


def test_a_rule_that_finds_no_product_is_an_error_unless_it_may():
    plain = nn.Sequential(nn.Linear(16, 16))
    rules = [fb.Rule(kind="linear", weight="int8"), attention()]
    message = r"rule \[kind 'attention': operands int8 token asym\] matches no layer: a run of the model showed no"
    with pytest.raises(PlanError, match=message):
        fb.quantize(plain, fb.Recipe(rules), calibration=[X])
    made = fb.plan(plain, fb.Recipe([rules[0], attention(optional=True)]), batch=X)
    assert made.problems == ()
    made = fb.plan(net(), fb.Recipe([rules[0], attention(match="third.*")]), batch=X)
    assert len(made.problems) == 1
    assert "matches no layer; the layers are: first.project (linear), first.out (linear)" in made.problems[0]


def test_products_show_in_a_run_so_there_has_to_be_something_to_run_on():
    recipe = fb.Recipe([attention()])
    for ask in (fb.plan, fb.quantize):
        with pytest.raises(PlanError, match="Net: the products inside attention show in a run of the model only; give"):
            ask(net(), recipe)
    found = [fb.quantize(net(), recipe, calibration=[X]), fb.quantize(net(), recipe, evaluation=[X])]
    assert all(len(result.plan.rounded_products) == 4 for result in found)


def test_tokens_that_a_model_does_not_know_are_named_before_it_runs():
    class Words(Net):
        config = type("Config", (), {"vocab_size": 5})()

        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(5, 16)

        def forward(self, words):
            return super().forward(self.table(words))

    with pytest.raises(CalibrationError, match="calibration batch 0: token 7 is outside the vocabulary of 5"):
        fb.quantize(Words(), fb.Recipe([attention()]), calibration=[torch.tensor([[1, 7]])])


def test_fixed_ranges_need_data_that_reach_the_product():
    with pytest.raises(PlanError, match="this recipe needs calibration data"):
        fb.quantize(net(), fb.Recipe([attention("int8 static")]), evaluation=[X])

    class Sometimes(Net):
        def forward(self, x):
            return super().forward(x) if len(x) == 3 else x

    rules = fb.Recipe([attention("int8 static")])
    calibration = fb.Calibration(data=[X, X[:2]])
    assert fb.quantize(Sometimes().eval(), rules, calibration=calibration).plan.problems == ()
    model = Sometimes().eval()
    with pytest.raises(CalibrationError, match=r"first\.query_key: no calibration input reached it"):
        fb.quantize(model, rules, calibration=fb.Calibration(data=Changing()))
    assert not any(isinstance(part, RoundedProduct) for part in model.modules())
    assert torch.equal(model(X), net()(X))


class Changing(Sequence):
    """Batches of which the first is another one once it was opened and the model was planned on it."""

    def __init__(self):
        self.asked = 0

    def __len__(self):
        return 2

    def __getitem__(self, place):
        if place not in (0, 1):
            raise IndexError(place)
        self.asked += 1
        return X if self.asked <= 2 else X[:2]


def test_a_file_that_has_no_place_for_them_is_refused_by_plan_and_save(tmp_path):
    recipe = fb.Recipe([fb.Rule(kind="linear", weight="int8"), attention(match="first.*"), fb.keep(kind="attention")])
    made = fb.plan(net(), recipe, to="compressed-tensors", batch=X)
    assert made.problems == (
        "first.query_key and 1 more: compressed-tensors has no place for rounded products inside attention; keep them, "
        "or save the module's state_dict instead",
    )
    result = fb.quantize(net(), recipe, calibration=[X])
    with pytest.raises(PlanError, match=r"first\.query_key: compressed-tensors has no place for rounded products"):
        result.save(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    kept = fb.Recipe([fb.Rule(kind="linear", weight="int8"), fb.keep(kind="attention")])
    result = fb.quantize(net(), kept, calibration=[X])
    result.save(tmp_path / "out")
    assert "query_key" not in (tmp_path / "out" / "config.json").read_text()
    assert torch.equal(fb.load(tmp_path / "out", into=net()).model(X), result.model(X))


# The run.


def test_the_report_names_each_product_with_its_schemes_and_what_stays_float(tmp_path):
    rules = [fb.Rule(kind="linear", weight="int8", input="int8"), attention("int8 static", r".*query_key"), attention()]
    result = fb.quantize(net(), fb.Recipe(rules), calibration=[X], evaluation=[X])
    layers = {layer.name: layer for layer in result.report.layers if layer.kind == "attention"}
    assert [layers[name].becomes for name in NAMES[:2]] == [
        "operands int8 tensor asym static",
        "operands int8 token asym",
    ]
    assert all(30 < layer.output_sqnr < 60 for layer in layers.values())  # dB: 8 bits leave about 40 of a bell
    assert layers[NAMES[0]].kernel.startswith("float32 product, not faster than float")
    assert result.report.remarks == (
        "operands of 4 products inside attention are rounded; softmax, norms and sums stay float",
    )
    assert "kind 'attention' and" not in result.report.rules[2]
    assert result.report.rules[2] == "kind 'attention': operands int8 token asym"
    for ending in ("json", "html"):
        text = result.report.save(tmp_path / f"report.{ending}").read_text()
        assert "first.query_key" in text.replace("<wbr>", "")
        assert "operands int8 token asym" in text
        assert "softmax, norms and sums stay float" in text
    assert "0 &times; 0" not in text
    assert "Both operands stay" not in text


def test_a_kept_product_is_said_to_stay_float(tmp_path):
    recipe = fb.Recipe([attention(match="first.*")])
    result = fb.quantize(net(), recipe, calibration=[X])
    assert {layer.name for layer in result.report.in_state("kept")} >= set(NAMES[2:])
    assert result.report.remarks == (
        "operands of 2 products inside attention are rounded; softmax, norms and sums stay float",
    )
    assert "Both operands stay float" in result.report.save(tmp_path / "report.html").read_text()


@torch.no_grad()
def test_the_measured_output_is_that_of_the_model_that_is_returned():
    plain = net()
    result = fb.quantize(net(), fb.Recipe([attention("int4")]), calibration=[X], evaluation=[X])
    expected, found = plain(X).double(), result.model(X).double()
    ratio = 10 * torch.log10(expected.square().sum() / (expected - found).square().sum())
    assert result.report.output_sqnr == pytest.approx(float(ratio), abs=1e-3)
    assert 5 < result.report.output_sqnr < 40


def test_fixed_ranges_are_of_what_the_quantized_layers_put_out():
    rules = [fb.Rule(kind="linear", weight="int3 channel"), attention("int8 static")]
    rounded = fb.quantize(net(), fb.Recipe(rules), calibration=[X]).model
    layers_alone = fb.quantize(net(), fb.Recipe(rules[:1])).model
    scheme = parse_input_scheme("int8 static")
    for model, same in ((layers_alone, True), (net(), False)):
        query = model.second.project(torch.relu(model.first(X))).chunk(3, -1)[0]
        low, high = query.detach().aminmax()
        scale, _ = scheme.grid.parameters(low, high)
        assert torch.equal(rounded.second.query_key.query.activation.scale, scale) is same


def test_gptq_and_rounded_products_go_together():
    rules = [fb.Rule(kind="linear", weight="int4 g16", algorithm="gptq"), attention("int8 static")]
    result = fb.quantize(net(), fb.Recipe(rules), calibration=[X, 2 * X], evaluation=[X])
    assert result.report.layers[0].algorithm == "gptq"
    assert result.report.output_sqnr > 10


def test_a_recipe_file_names_products():
    recipe = fb.Recipe.from_text('[[rules]]\nkind = "attention"\nmatch = "first.*"\ninput = "e4m3 static"')
    assert str(recipe.rules[0]) == "match 'first.*' and kind 'attention': operands e4m3 tensor static"
    assert recipe.names_products
    assert recipe.rules[0].weight is None
