"""The plan: what each layer becomes, how many bytes that takes, and every problem before any work."""

import pytest

import fewbit as fb
from fewbit.checkpoints.compressed_tensors import CompressedTensors
from fewbit.errors import PlanError
from fewbit.interfaces import Layer, StoredTensor
from fewbit.planning import resolve
from fewbit.presets import preset


def linear(name, out, width, **more):
    return Layer(name, "linear", (out, width), "Linear", **more)


def plan_of(layers, rules, *, floats=(), storage_type="float16", target=None):
    recipe = rules if isinstance(rules, fb.Recipe) else fb.Recipe(rules)
    return resolve("toy", layers, floats, recipe, storage_type=storage_type, target=target)


def becomes(plan):
    return [row.becomes for row in plan.rows]


NARROW, WIDE = linear("a.up", 1536, 576), linear("a.down", 576, 1536)


# Adaptation: what presets do.


def test_a_preset_gives_all_layers_the_one_group_size_that_divides_every_width():
    plan = plan_of([WIDE, NARROW], preset("w4a16"))
    assert becomes(plan) == ["int4 g64", "int4 g64"]
    assert plan.adaptations == ("group size 128 -> 64 for 2 layers: a.up has width 576, which 128 does not divide",)
    assert plan.problems == ()


def test_a_preset_adapts_nothing_where_its_group_size_divides():
    plan = plan_of([WIDE, linear("b", 8, 128)], preset("w4a16"))
    assert becomes(plan) == ["int4 g128", "int4 g128"]
    assert plan.adaptations == ()


@pytest.mark.parametrize(("width", "size"), [(576, 64), (96, 32), (80, 16), (16, 16)])
def test_the_largest_usual_size_that_divides_is_taken(width, size):
    assert becomes(plan_of([linear("a", 8, width)], preset("w4a16"))) == [f"int4 g{size}"]


def test_an_odd_width_goes_per_channel_is_said_and_leaves_the_others_their_groups():
    plan = plan_of([WIDE, linear("odd", 8, 100)], preset("w4a16-asym"))
    assert becomes(plan) == ["int4 g128 asym", "int4 channel asym"]
    assert plan.adaptations == ("odd: no usual group size divides its width 100, so per channel",)
    assert plan.problems == ()


def test_a_kept_layer_does_not_shrink_the_groups_of_the_others():
    kept = Layer("lm_head", "head", (320, 80), "Linear")
    plan = plan_of([kept, WIDE], preset("w4a16"))
    assert becomes(plan) == ["float", "int4 g128"]
    assert plan.adaptations == ()


@pytest.mark.parametrize(("name", "size"), [("mxfp4a16", 32), ("nvfp4a16", 16), ("mxfp4", 32), ("mxfp8", 32)])
def test_a_preset_of_blocks_keeps_what_its_blocks_do_not_divide_and_no_block_changes_its_size(name, size):
    plan = plan_of([WIDE, linear("odd", 8, 3 * size // 2)], preset(name))
    assert [row.scheme and row.scheme.granularity.size for row in plan.rows] == [size, None]
    block = name.removesuffix("a16")
    why = f"kept float, its width {3 * size // 2} is not a multiple of {size}, a block of {block}"
    assert plan.adaptations == (f"odd: {why}",)
    assert plan.problems == ()


@pytest.mark.parametrize(("name", "kept"), [("mxfp4", True), ("mxfp4a16", False)])
def test_a_preset_that_rounds_inputs_in_blocks_keeps_convolutions(name, kept):
    plan = plan_of([Layer("c", "conv", (8, 64), "Conv2d"), WIDE], preset(name))
    assert (plan.rows[0].scheme is None) is kept
    assert plan.adaptations == (("c: kept float, the inputs of a convolution have no blocks of mxfp4",) if kept else ())
    assert plan.problems == ()


def test_a_preset_without_groups_adapts_nothing():
    plan = plan_of([linear("odd", 8, 101)], preset("w8a16"))
    assert becomes(plan) == ["int8 channel"]
    assert plan.adaptations == ()


def test_a_recipe_of_ones_own_adapts_where_it_is_told_to():
    rules = [fb.Rule("a", weight="int4 g12")]
    plan = plan_of([linear("a", 8, 32)], fb.Recipe(rules, adapts=True))
    assert plan.problems == ()
    assert plan.adaptations != ()


# Problems: everything that keeps an explicit recipe from being carried out.


def test_an_explicit_group_size_that_does_not_divide_is_a_problem_with_the_remedy():
    plan = plan_of([NARROW], [fb.Rule(".*", weight="int4 g128")])
    assert plan.problems == (
        "a.up: in_features 576 is not a multiple of group size 128; use g64, or a preset, which adapts",
    )
    assert plan.adaptations == ()
    assert becomes(plan) == ["int4 g128"]


def test_the_remedy_is_channel_where_no_group_size_divides():
    plan = plan_of([linear("a", 8, 100)], [fb.Rule(".*", weight="int4 g64")])
    assert plan.problems == (
        "a: in_features 100 is not a multiple of group size 64; use channel, or a preset, which adapts",
    )


def test_the_same_problem_of_several_layers_is_said_once():
    layers = [linear(f"layer{i}", 8, 576) for i in range(5)]
    plan = plan_of(layers, [fb.Rule(".*", weight="int4 g128")])
    assert len(plan.problems) == 1
    assert plan.problems[0].startswith("layer0 and 4 more: in_features 576 ")


def test_a_rule_that_matches_nothing_is_a_problem_that_names_the_layers():
    plan = plan_of([NARROW, WIDE], [fb.Rule(kind="linear", weight="int8"), fb.keep("nobody")])
    assert plan.problems == (
        "rule [match 'nobody': keep] matches no layer; the layers are: a.up (linear), a.down (linear)",
    )


def test_many_layers_are_not_all_named():
    layers = [linear(f"layer{i}", 8, 64) for i in range(9)]
    plan = plan_of(layers, [fb.Rule(kind="linear", weight="int8"), fb.keep("nobody")])
    assert "layer5 (linear) and 3 more" in plan.problems[0]
    assert "layer6" not in plan.problems[0]


def test_a_rule_that_earlier_rules_leave_nothing_is_a_problem():
    plan = plan_of([NARROW], [fb.Rule(kind="linear", weight="int8"), fb.Rule(r"a\..*", weight="int4 g64")])
    assert plan.problems == (
        "rule [match 'a\\\\..*': int4 g64 by nearest] has no effect: earlier rules take every layer it matches; "
        "move it up",
    )


def test_a_rule_given_twice_is_a_problem_even_if_it_is_the_same_object():
    rule = fb.Rule(kind="linear", weight="int8")
    assert len(plan_of([NARROW], [rule, rule]).problems) == 1


def test_an_optional_rule_may_match_nothing():
    rules = [fb.keep("nobody", optional=True), fb.Rule(kind="linear", weight="int8")]
    assert plan_of([NARROW], rules).problems == ()


def test_a_recipe_that_quantizes_nothing_is_a_problem():
    head = Layer("head", "head", (8, 8), "Linear")
    plan = plan_of([head], preset("w8a16"))
    assert plan.problems == ("the recipe quantizes none of the 1 layers (kinds: head); add a rule that matches some",)
    assert plan_of([], preset("w8a16")).problems == (
        "the model has no layer that fewbit can quantize: no linear layer, Conv1D or embedding",
    )


def test_what_the_target_cannot_hold_is_a_problem():
    conv = Layer("c", "linear", (8, 64), "Conv1D", stored=(64, 8))
    rules = [fb.Rule(".*", weight="int8")]
    assert plan_of([conv], rules).problems == ()
    plan = plan_of([conv], rules, target=CompressedTensors())
    assert plan.problems == (f"c: {CompressedTensors().problem(plan.quantized[0])}",)


def test_every_problem_is_found_at_once_and_raised_together():
    rules = [fb.keep("nobody"), fb.Rule(".*", weight="int4 g128"), fb.Rule("a.*", weight="int8")]
    plan = plan_of([NARROW], rules)
    assert len(plan.problems) == 3
    with pytest.raises(PlanError) as caught:
        plan.require_sound()
    assert str(caught.value).split("\n") == list(plan.problems)


def test_a_sound_plan_raises_nothing():
    plan_of([NARROW], preset("w4a16")).require_sound()


BIASED = linear("a", 8, 64, bias=True)
EMBEDDING = Layer("words", "embedding", (320, 64), "Embedding")
#: Weight, input, and what the plan says of them.
WITHOUT_UNIT = {
    "a float input": ("int8", None, "its input is float; use input = 'int8 static', or leave out `bias`"),
    "a dynamic input": ("int8", "int8", "its input is 'int8 token asym'; use"),
    "a scale a channel": ("int8", "int8 channel static", "its input is 'int8 channel asym static'; use"),
    "an input of floats": ("int8", "e4m3 static", "its input is 'e4m3 tensor static'; use"),
    "a weight of floats": (
        "e4m3",
        "int8 static",
        "its weight is 'e4m3 channel'; use weight = 'int8', or leave out `bi",
    ),
    "groups": ("int4 g32", "int8 static", "its weight is 'int4 g32'; use weight = 'int8'"),
    "input channels": ("int8 channel:1", "int8 static", "its weight is 'int8 channel:1'; use weight = 'int8'"),
    "a zero point between codes": ("int4 channel float-zero", "int8 static", "'int4 channel float-zero'; use"),
    "scales of scales": ("nf4-double", "int8 static", "its weight is 'nf4-double'; use weight = 'int8'"),
}


@pytest.mark.parametrize("case", WITHOUT_UNIT)
@pytest.mark.parametrize("bias", [True, False])  # also without: a folded BatchNorm may bring one
def test_a_bias_without_a_unit_to_count_it_in_is_a_problem_with_the_remedy(case, bias):
    weight, given, sentence = WITHOUT_UNIT[case]
    plan = plan_of([linear("a", 8, 64, bias=bias)], [fb.Rule("a", weight=weight, input=given, bias="int32")])
    (problem,) = plan.problems
    assert problem.startswith("a: an int32 bias needs integer ")
    assert sentence in problem
    assert plan_of([BIASED], [fb.Rule("a", weight=weight, input=given, bias="float")]).problems == ()


@pytest.mark.parametrize("weight", ["int8", "int8 tensor", "int4 channel asym", "int7 narrow"])
@pytest.mark.parametrize("given", ["int8 static", "int8 static sym percentile", "uint8 static", "int16 static"])
def test_a_bias_of_integer_products_under_fixed_scales_is_sound(weight, given):
    plan = plan_of([BIASED], [fb.Rule("a", weight=weight, input=given, bias="int32")])
    assert plan.problems == ()
    assert plan.rows[0].bias == plan.quantized[0].bias == "int32"
    assert plan.rows[0].becomes.endswith(", bias int32")


def test_an_embedding_has_no_bias_to_round():
    plan = plan_of([EMBEDDING], [fb.Rule("words", weight="int8", bias="int32")])
    assert plan.problems == ("words: an embedding has no bias; leave out `bias`",)


def test_a_layer_without_a_bias_is_noted_and_the_others_of_the_rule_get_theirs():
    plan = plan_of([BIASED, linear("b", 8, 64)], [fb.Rule(".*", weight="int8", input="int8 static", bias="int32")])
    assert plan.problems == ()
    assert [row.bias for row in plan.rows] == ["int32", "float"]
    assert [row.notes for row in plan.rows] == [(), ("it has no bias to round",)]
    assert becomes(plan)[1] == "int8 channel, input int8 tensor asym static"


# Bytes.

FLOATS = (
    StoredTensor("a.weight", "float32", (8, 64)),
    StoredTensor("a.bias", "float32", (8,)),
    StoredTensor("steps", "int64", (3,)),
)


@pytest.mark.parametrize(
    ("weight", "after"),
    [
        ("int8", 8 * 64 + 8 * 2),  # codes, a float16 scale for each row
        ("int4 g32", 8 * 32 + 8 * 2 * 2),  # half a byte each, two groups a row
        ("int4 g32 asym", 8 * 32 + 8 * 2 * 2 + 8 * 2),  # and an int8 zero point for each group
        ("int3 g64", 8 * 24 + 8 * 2),
        ("e4m3 tensor", 8 * 64 + 2),
    ],
)
def test_bytes_without_a_target_are_codes_scales_and_zero_points(weight, after):
    plan = plan_of([linear("a", 8, 64)], [fb.Rule("a", weight=weight)], floats=FLOATS)
    assert [(row.bytes_before, row.bytes_after) for row in plan.rows] == [(8 * 64 * 2, after)]
    # The bias is stored as float16; integers stay what they are.
    assert plan.rest_bytes == 8 * 2 + 3 * 8
    assert plan.bytes_before == 8 * 64 * 2 + 40
    assert plan.bytes_after == after + 40


@pytest.mark.parametrize(
    ("weight", "after"),
    [
        ("int8", 8 * 64 + 8 * 2 + 16),  # words, scales, two int64 of the shape
        ("int4 g32 asym", 8 * 8 * 4 + 8 * 2 * 2 + 16 + 2 * 4),  # zero points of 8 rows share a word
        ("int3 g64", 8 * 6 * 4 + 8 * 2 + 16),  # 64 * 3 bits are 6 words
        ("e4m3", 8 * 64 + 8 * 2),
    ],
)
def test_bytes_with_a_target_are_what_its_files_hold(weight, after):
    plan = plan_of([linear("a", 8, 64)], [fb.Rule("a", weight=weight)], floats=FLOATS, target=CompressedTensors())
    assert plan.rows[0].bytes_after == after


def tied(*rules):
    layers = [
        Layer("words", "embedding", (320, 64), "Embedding", tied=("scores",)),
        linear("a", 64, 64),
        Layer("scores", "head", (320, 64), "Linear", tied=("words",)),
    ]
    return plan_of(layers, [*rules, fb.Rule(kind="linear", weight="int8")])


def test_a_tied_weight_that_is_kept_is_counted_once():
    plan = tied(fb.keep(kind="head"), fb.keep(kind="embedding"))
    assert [(row.bytes_before, row.bytes_after) for row in plan.rows] == [
        (320 * 64 * 2, 320 * 64 * 2), (64 * 64 * 2, 64 * 64 + 64 * 2), (0, 0),
    ]  # fmt: skip
    assert not plan.unties
    assert plan.rows[0].notes == ("kept by rule 'embedding'", "tied to scores")
    assert [tensor.name for tensor in plan.manifest({}, {}).floats] == ["words.weight"]


def test_a_tied_weight_that_is_quantized_in_one_place_is_counted_in_both():
    plan = tied(fb.Rule(kind="head", weight="int8"), fb.keep(kind="embedding"))
    head = plan.rows[2]
    assert (head.bytes_before, head.bytes_after) == (0, 320 * 64 + 320 * 2)
    assert plan.rows[0].bytes_after == 320 * 64 * 2
    assert plan.unties
    assert head.notes == ("tied to words", "untied: stored on its own")


def test_a_head_that_stays_float_when_the_embedding_goes_is_stored_too():
    plan = tied(fb.Rule(kind="embedding", weight="int8"), fb.keep("a|scores"))
    assert [row.bytes_after for row in plan.rows] == [320 * 64 + 320 * 2, 64 * 64 * 2, 320 * 64 * 2]
    assert [tensor.name for tensor in plan.manifest({}, {}).floats] == ["a.weight", "scores.weight"]


def test_untying_is_written_into_the_configuration():
    configuration = {"tie_word_embeddings": True, "dtype": "float32"}
    plan = tied(fb.Rule(kind="head", weight="int8"), fb.keep(kind="embedding"))
    assert plan.manifest(configuration, {}).configuration == {"tie_word_embeddings": False, "dtype": "float16"}
    plan = tied(fb.keep(kind="head"), fb.keep(kind="embedding"))
    assert plan.manifest(configuration, {}).configuration == {"tie_word_embeddings": True, "dtype": "float16"}


def test_scales_of_a_float32_model_are_float16_unless_the_target_stores_them_otherwise():
    rules = [fb.Rule("a", weight="int8")]
    layers = [linear("a", 8, 64)]
    assert plan_of(layers, rules, storage_type="float32").rows[0].scheme.scale_type == "float16"
    assert plan_of(layers, rules, storage_type="bfloat16").rows[0].scheme.scale_type == "bfloat16"
    with_target = plan_of(layers, rules, storage_type="float32", target=CompressedTensors())
    assert with_target.rows[0].scheme.scale_type == "float32"


# What is printed.


def test_the_printed_plan_names_every_layer_adaptation_and_problem():
    layers = [NARROW, WIDE, linear("odd", 8, 100), Layer("top", "head", (320, 64), "Linear")]
    plan = plan_of(layers, fb.Recipe([*preset("w4a16").rules, fb.keep("nobody")], adapts=True), floats=FLOATS[1:])
    lines = str(plan).splitlines()
    for row in plan.rows:
        (line,) = [line for line in lines if line.startswith(row.layer.name + " ")]
        assert row.becomes in line
        assert f"{row.bytes_before:,}" in line
        assert f"{row.bytes_after:,}" in line
    assert f"{plan.bytes_after:,}" in next(line for line in lines if line.startswith("whole model"))
    assert [line for line in lines if line.startswith("adapted: ")] == [f"adapted: {t}" for t in plan.adaptations]
    assert [line for line in lines if line.startswith("problem: ")] == [f"problem: {t}" for t in plan.problems]
    assert (len(plan.adaptations), len(plan.problems)) == (2, 1)


def test_a_layer_that_no_rule_matches_says_so():
    plan = plan_of([NARROW, WIDE], [fb.Rule(r"a\.up", weight="int8")])
    assert plan.rows[1].notes == ("no rule matches",)
    assert "no rule matches" in str(plan)


def test_a_preset_keeps_convolutions_that_the_file_cannot_hold_and_says_so():
    from torch import nn

    model = nn.Sequential(nn.Conv2d(3, 16, 4, stride=4), nn.Flatten(2), nn.Linear(16, 16))
    free, bound = fb.plan(model, "w8a16"), fb.plan(model, "w8a16", to="compressed-tensors")
    assert [row.becomes for row in free.rows] == ["int8 channel", "int8 channel"]
    assert [row.becomes for row in bound.rows] == ["float", "int8 channel"]
    assert bound.adaptations == ("0: kept float, compressed-tensors holds no Conv2d",)
    assert bound.rows[0].notes == ("kept: compressed-tensors holds no Conv2d",)
    assert not bound.problems
    explicit = fb.plan(model, fb.Recipe([fb.Rule(".*", weight="int8")]), to="compressed-tensors")
    assert explicit.problems[0].startswith("0: transformers runs compressed-tensors weights of Linear modules only")
