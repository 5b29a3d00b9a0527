"""AdaRound: a smaller error of the output under a larger one of the weights, between the levels around each weight."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from correlated_rows import CorrelatedRows
from torch import nn

import fewbit as fb
from fewbit.algorithms.adaround import AdaRound
from fewbit.errors import RecipeError, SchemeError
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme
from fewbit.statistics.grouped_moment import GroupedMoment
from fewbit.statistics.second_moment import RelativeSecondMoment, SecondMoment

pytestmark = pytest.mark.usefixtures("one_thread")
WIDTH = 64
WEIGHT = (np.random.default_rng(0).normal(size=(32, WIDTH)) / 8).astype(np.float32)
SCHEMES = [
    "int2 g32 asym", "int3 g32", "int4 channel", "int8 channel", "int4 tensor", "int4 tensor asym", "uint4 g32 asym",
    "int2 g32 float-zero", "int4 narrow channel", "nf4 g32", "ternary g32", "e2m1 g32", "e4m3 channel", "nvfp4",
    "mxfp4", "kmeans3 channel", "q4_0", "q4_1",
]  # fmt: skip
INPUTS = CorrelatedRows(WEIGHT, SecondMoment, 800, 0.5, 0.2)
rows, moment = INPUTS.rows, INPUTS.moment
SEEN, OTHER = moment(1), moment(2)


def error(qtensor, own=SEEN, weight=WEIGHT):
    return INPUTS.error(qtensor, own, weight)


@cache
def solved(text, **options):
    algorithm = AdaRound(**options)
    return algorithm(WEIGHT, {algorithm.statistics[0]: SEEN}, parse_scheme(text))


def around(start):
    """Return the values of the levels below and above each weight, found by looking at all of them."""
    form = start.scheme.format
    codes = np.arange(8) if start.codebook is not None else form.encode(np.asarray(form.levels, np.float32))
    every = [replace(start, codes=np.full_like(start.codes, code)).dequantize() for code in np.unique(codes)]
    levels = np.stack(every)
    below, above = np.where(levels <= WEIGHT, levels, -np.inf).max(0), np.where(levels >= WEIGHT, levels, np.inf).min(0)
    return np.where(np.isfinite(below), below, above), np.where(np.isfinite(above), above, below)


# What it computes.


@pytest.mark.parametrize("text", SCHEMES)
def test_the_output_comes_nearer_also_on_other_inputs_while_the_weights_go_farther(text):
    found, start = solved(text).qtensor, quantize(WEIGHT, parse_scheme(text))
    assert error(found).sum() < 0.8 * error(start).sum()
    assert error(found, OTHER).sum() < 0.9 * error(start, OTHER).sum()
    far, near = (np.square(own.dequantize() - WEIGHT).sum() for own in (found, start))
    assert far > near
    # float32 sums decide by a part in a hundred thousand.
    assert (error(found) <= error(start) * (1 + 1e-5)).all()


@pytest.mark.parametrize("text", SCHEMES)
def test_every_code_is_that_of_the_level_below_or_above_and_the_scales_stay(text):
    found, start = solved(text).qtensor, quantize(WEIGHT, parse_scheme(text))
    assert np.array_equal(found.scale_values(), start.scale_values())
    assert found.zero_point is start.zero_point or np.array_equal(found.zero_point, start.zero_point)
    below, above = around(start)
    values = found.dequantize()
    moved = values != start.dequantize()
    assert moved.any()
    assert ((values == below) | (values == above))[moved].all()


def test_what_lies_on_a_level_stays_there():
    """Pruned weights stay 0."""
    scheme = parse_scheme("int3 channel")
    pruned = np.where(np.random.default_rng(3).random(WEIGHT.shape) < 0.5, 0.0, WEIGHT).astype(np.float32)
    found = AdaRound()(pruned, {"second_moment": SEEN}, scheme).qtensor
    assert (found.codes[pruned == 0.0] == 0).all()
    assert error(found, weight=pruned).sum() < error(quantize(pruned, scheme), weight=pruned).sum()


def test_what_lies_beyond_all_levels_has_the_outermost():
    scheme = parse_scheme("int3 channel mse")
    start = quantize(WEIGHT, scheme)
    beyond = np.abs(WEIGHT) > 4.0 * start.scale_values()
    assert beyond.any()
    found = solved("int3 channel mse").qtensor
    assert (found.codes[beyond] == start.codes[beyond]).all()
    assert error(found).sum() < 0.8 * error(start).sum()


def test_no_step_is_rounding_to_nearest_and_the_same_is_found_again():
    start = quantize(WEIGHT, parse_scheme("int4 g32"))
    assert (
        AdaRound(steps=0)(WEIGHT, {"second_moment": SEEN}, parse_scheme("int4 g32")).qtensor.codes == start.codes
    ).all()
    one, again = (AdaRound()(WEIGHT, {"second_moment": SEEN}, parse_scheme("int2 g32 asym")).qtensor for _ in range(2))
    assert one.codes.tobytes() == again.codes.tobytes()


def test_products_in_bfloat16_and_float32_learn_about_as_much():
    left = [error(solved("int3 g32", precision=precision).qtensor).sum() for precision in ("float32", "bfloat16")]
    # Both are some optimum of very many; neither is to be clearly the worse one.
    assert max(left) < 1.05 * min(left)


def test_groups_of_rows_are_learned_for_their_own_inputs():
    """As the channels of a depthwise convolution, and groups of two."""
    for groups in (32, 16):
        seen = GroupedMoment.init(8, groups, WEIGHT)
        seen.update(np.concatenate([rows(group, width=8) for group in range(groups)], axis=1))
        weight, scheme = WEIGHT[:, :8].copy(), parse_scheme("int3 channel")
        found = AdaRound()(weight, {"second_moment": seen}, scheme).qtensor

        def left(qtensor, seen=seen, weight=weight):
            off = (np.asarray(qtensor.dequantize(), np.float64) - weight).reshape(seen.groups, -1, 8)
            return (off @ seen.result().astype(np.float64) * off).sum(2).reshape(-1)

        start = quantize(weight, scheme)
        assert (left(found) <= left(start) * (1 + 1e-5)).all()
        assert left(found).sum() < 0.8 * left(start).sum()


def test_relative_second_moments_are_asked_for_by_an_option():
    algorithm = AdaRound(relative=True, asymmetric=False)
    assert algorithm.statistics == ("relative_second_moment",)
    assert AdaRound(relative=True).statistics == ("relative_second_moment", "relative_input_drift")
    own = moment(1, kind=RelativeSecondMoment)
    found = algorithm(WEIGHT, {"relative_second_moment": own}, parse_scheme("int4 channel")).qtensor
    assert error(found, own).sum() < 0.8 * error(quantize(WEIGHT, parse_scheme("int4 channel")), own).sum()


def test_tensors_of_torch_give_the_bytes_of_arrays():
    own = SecondMoment(torch.from_numpy(SEEN.total.copy()), SEEN.count)
    found = AdaRound()(torch.from_numpy(WEIGHT), {"second_moment": own}, parse_scheme("int4 g32")).qtensor
    assert isinstance(found.codes, torch.Tensor)
    assert found.codes.numpy().tobytes() == solved("int4 g32").qtensor.codes.tobytes()


def test_without_enough_rows_weights_are_rounded_to_nearest_and_the_report_says_so():
    scheme = parse_scheme("int4 g32")
    few = AdaRound()(WEIGHT, {"second_moment": moment(1, WIDTH - 1)}, scheme)
    assert few.remarks == (f"{WIDTH - 1} rows reached it, fewer than its {WIDTH} inputs: its rounding was not trained",)
    assert (few.qtensor.codes == quantize(WEIGHT, scheme).codes).all()
    assert AdaRound()(WEIGHT, None, scheme).remarks == (
        "no calibration input reached it: its rounding was not trained",
    )


# In a model.

RECIPE = [fb.Rule(".*", weight="int3 channel", algorithm="adaround")]


def network(*, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 12, 1), nn.ReLU(),
        nn.Flatten(), nn.Linear(12 * 16, 5),
    ).eval()  # fmt: skip


def images(count=60, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(4, 3, 8, 8, generator=generator).cumsum(3) / 2 for _ in range(count)]


def test_convolutions_depthwise_ones_too_lose_less_at_their_outputs():
    local = [replace(rule, algorithm=AdaRound(asymmetric=False)) for rule in RECIPE]
    report = fb.quantize(network(), fb.Recipe(local), calibration=images()).report
    for layer in report.layers:
        # Of the 8 or 9 inputs of a row there are few ways to round.
        assert layer.solved_sqnr > layer.nearest_sqnr + (1.0 if layer.shape[1] > 9 else 0.2), layer.name
        assert not layer.remarks


def test_of_depthwise_convolutions_the_drift_is_not_known():
    report = fb.quantize(network(), fb.Recipe(RECIPE), calibration=images()).report
    assert [layer.name for layer in report.layers if layer.remarks] == ["2"]


CONVOLVING = """(float[n, 6, 8, 8] x) => (float[n, 12, h, w] y) {{
    y = Conv <kernel_shape = [3, 3], group = {groups}> (x, "w") }}"""
MULTIPLYING = """(float[n, 6] x) => (float[n, 12] y) { y = MatMul(x, "w") }"""


@pytest.mark.parametrize("groups", [1, 6, None], ids=["convolution", "depthwise", "linear"])
def test_a_graph_gets_the_codes_of_the_module(onnx_model, groups):
    """Inputs are whole numbers, whose sums every framework has to the last bit."""
    torch.manual_seed(0)
    module = nn.Conv2d(6, 12, 3, groups=groups, bias=False) if groups else nn.Linear(6, 12, bias=False)
    shape = (4, 6, 8, 8) if groups else (40, 6)
    draw = np.random.default_rng(1)
    batches = [draw.integers(-8, 8, shape).astype(np.float32).cumsum(-1) for _ in range(3)]
    weight = module.weight.detach().numpy()
    made = (
        onnx_model(CONVOLVING.format(groups=groups), {"w": weight})
        if groups
        else onnx_model(MULTIPLYING, {"w": weight.T})
    )
    graph = fb.quantize(made, fb.Recipe(RECIPE), to="ort-cpu", calibration=batches)
    tensors = [torch.from_numpy(own) for own in batches]
    found = fb.quantize(nn.Sequential(module), fb.Recipe(RECIPE), to="ort-cpu", calibration=tensors)
    [theirs] = [own.qtensor for own in graph.model.layers.values()]
    ours = found.model[0].qtensor
    assert theirs.codes.tobytes() == ours.codes.numpy().tobytes()
    assert theirs.scale.tobytes() == ours.scale.numpy().tobytes()
    assert found.report.layers[0].solved_sqnr > found.report.layers[0].nearest_sqnr
    assert graph.report.layers[0].algorithm == "adaround"


# What it refuses.


@pytest.mark.parametrize("text", ["bf16", "fp16", "int16 channel"])
def test_a_scheme_of_more_than_8_bits_is_a_problem_of_the_plan(text):
    recipe = fb.Recipe([fb.Rule("0", weight=text, algorithm="adaround"), fb.keep(".*")])
    [problem] = fb.plan(network(), recipe).problems
    assert problem == (
        f"0: adaround learns between the levels of up to 8 bits, not of '{parse_scheme(text)}'; use int8 or less, or "
        "nearest"
    )
    with pytest.raises(SchemeError, match="adaround learns between the levels"):
        AdaRound()(WEIGHT, None, parse_scheme(text))


@pytest.mark.parametrize(("options", "message"), [
    ({"steps": -1}, "steps -1 is no number of them; leave it out"), ({"steps": 1.5}, "steps 1.5 is no number"),
    ({"regularization": -1}, r"regularization -1 is outside \[0, 1e\+06\]; leave it out"),
    ({"warm": 1.0}, r"warm 1.0 is outside \[0, 0.9\]; leave it out"), ({"warm": True}, "warm True is outside"),
    ({"reach": 0}, r"reach 0 is outside \[0.1, 1000\]; leave it out"),
    ({"relative": 1}, "relative = 1 is not true or false"), ({"asymmetric": 0}, "asymmetric = 0 is not true or false"),
    ({"precision": "half"}, "precision 'half' is none of auto, float32, bfloat16"),
])  # fmt: skip
def test_an_option_out_of_range_is_refused(options, message):
    with pytest.raises(RecipeError, match=f"^adaround: {message}"):
        AdaRound(**options)


def test_recipes_name_it_with_its_options():
    text = '[[rules]]\nkind = "conv"\nweight = "int4"\nalgorithm = { name = "adaround", steps = 500, warm = 0.1 }'
    [rule] = fb.Recipe.from_text(text).rules
    assert rule.algorithm == fb.AdaRound(steps=500, warm=0.1)
