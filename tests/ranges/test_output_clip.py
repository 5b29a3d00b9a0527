"""AWQ's clipping: the factors with the least output error, as a slow search finds them; what needs it and what not."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.algorithms.gptq import Gptq
from fewbit.algorithms.hessian import Corner
from fewbit.algorithms.nearest import Nearest
from fewbit.errors import PlanError, RecipeError, SchemeError
from fewbit.frontends.torch.key_value_cache import key_value_cache
from fewbit.qtensor import quantize
from fewbit.ranges.output_clip import OutputClip
from fewbit.ranges.squared_error import SquaredError
from fewbit.schemes.notation import parse_scheme
from fewbit.schemes.scheme import Scheme
from fewbit.statistics.second_moment import RelativeSecondMoment

pytestmark = pytest.mark.usefixtures("one_thread")


def drawn(out=24, width=128, seed=0):
    """Return a weight with heavy tails, and the second moment of inputs whose features go together."""
    random = np.random.default_rng(seed)
    inputs = random.normal(size=(400, width)) * np.exp(random.normal(size=width)) @ random.normal(size=(width, width))
    moment = inputs.T @ inputs / len(inputs)
    return random.standard_t(4, size=(out, width)).astype(np.float32), moment.astype(np.float32)


def output_error(weight, qtensor, moment):
    difference = qtensor.dequantize().astype(np.float64) - weight
    return float(((difference @ moment.astype(np.float64)) * difference).sum())


def group_error(weight, qtensor, moment, size):
    """Return the errors of the partial outputs of groups, added up: the moment without what joins two groups."""
    groups = np.arange(len(moment)) // size
    return output_error(weight, qtensor, np.where(groups[:, None] == groups, moment, 0.0))


def slowly(group, moment, bits, *, symmetric):
    """Return the scale of the search in float64, one factor after the other, for one group of one row."""
    group, moment = group.astype(np.float64), moment.astype(np.float64)
    levels = 2**bits - 1
    largest = np.abs(group).max()
    low, high = (-largest, largest) if symmetric else (min(group.min(), 0.0), max(group.max(), 0.0))
    middle = -(2 ** (bits - 1))

    def tried(low, high):
        scale = (high - low) / levels
        zero = 0.0 if symmetric else np.clip(np.round(middle - low / scale), middle, middle + levels)
        codes = np.clip(np.round(group / scale) + zero, middle, middle + levels)
        error = (codes - zero) * scale - group
        return error @ moment @ error, scale

    factors = [min(2**bits / levels, 1.1) if symmetric else 1.0, *(1.0 - 0.5 * step / 20 for step in range(1, 21))]
    best = (*tried(low, high), low, high)
    for own_low, own_high in ((True, True), (False, True), (True, False))[: 1 if symmetric else 3]:
        start = best[2:]
        for factor in factors:
            bounds = start[0] * (factor if own_low else 1.0), start[1] * (factor if own_high else 1.0)
            found = tried(*bounds)
            best = (*found, *bounds) if found[0] < best[0] else best
    return best[1]


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [4, 3, 2])
def test_it_finds_the_factors_of_a_slow_search(bits, symmetric):
    weight, moment = drawn(out=6)
    scheme = parse_scheme(f"int{bits} g32 {'sym' if symmetric else 'asym'} clip")
    found = quantize(weight, scheme, moment=moment).scale
    wanted = [
        [
            slowly(row[at : at + 32], moment[at : at + 32, at : at + 32], bits, symmetric=symmetric)
            for at in (0, 32, 64, 96)
        ]
        for row in weight
    ]
    # Float32 against float64; a neighbouring factor would be 2.5 % away.
    np.testing.assert_allclose(found, wanted, rtol=1e-5)
    assert np.mean(np.abs(found / quantize(weight, scheme).scale - 1.0) > 0.02) > 0.3  # the extremes are others


@pytest.mark.parametrize(
    "granularity", ["g32", "g48", "channel", "tensor", "tile8x32", "tile5x48", "channel:1", "channel:0x4"]
)
@pytest.mark.parametrize("words", ["int3", "int3 asym", "e2m1", "nf4", "ternary"])
def test_no_granularity_leaves_more_error_in_its_groups_than_the_extremes(words, granularity):
    weight, moment = drawn()
    plain = quantize(weight, parse_scheme(f"{words} {granularity} {'minmax' if 'asym' in words else 'absmax'}"))
    clipped = quantize(weight, parse_scheme(f"{words} {granularity} clip"), moment=moment)
    size = {"g": 32, "c": 128, "t": 128}[granularity[0]] if granularity != "tile8x32" else 32
    size = 48 if "48" in granularity else 1 if granularity == "channel:1" else size
    assert group_error(weight, clipped, moment, size) < group_error(weight, plain, moment, size)


def test_under_independent_inputs_of_one_size_it_is_the_search_for_the_least_squared_error():
    weight, _ = drawn()
    for words in ("int4 g32", "int3 g32 asym", "e2m1 g32"):
        scheme = parse_scheme(words)
        same = Scheme(
            format=scheme.format,
            granularity=scheme.granularity,
            symmetric=scheme.symmetric,
            range_method=SquaredError(steps=20, smallest=0.5),
        )
        found = quantize(weight, parse_scheme(f"{words} clip"), moment=np.eye(128, dtype=np.float32))
        np.testing.assert_array_equal(found.scale, quantize(weight, same).scale)


@pytest.mark.parametrize("words", ["int3 g32", "int3 g32 asym", "int4 channel"])
@pytest.mark.parametrize("seed", range(3))
def test_clipping_for_the_inputs_beats_extremes_and_weighted_squares_in_output_error(words, seed):
    weight, moment = drawn(seed=seed)
    clipped = output_error(weight, quantize(weight, parse_scheme(f"{words} clip"), moment=moment), moment)
    assert clipped < output_error(weight, quantize(weight, parse_scheme(words)), moment)
    # Only the diagonal: what inputs have in common is not known.
    by_power = quantize(weight, parse_scheme(f"{words} mse"), importance=moment.diagonal())
    assert clipped < output_error(weight, by_power, moment)


def test_arrays_of_torch_find_the_same_bounds():
    weight, moment = drawn()
    scheme = parse_scheme("int4 g32 asym clip")
    ours = quantize(weight, scheme, moment=moment)
    theirs = quantize(torch.from_numpy(weight), scheme, moment=torch.from_numpy(moment))
    np.testing.assert_array_equal(theirs.codes.numpy(), ours.codes)


def statistics(moment_of):
    seen = RelativeSecondMoment.init(moment_of.shape[1], moment_of)
    seen.update(moment_of)
    return {"relative_second_moment": seen}


def correlated(width=128, seed=0):
    random = np.random.default_rng(seed)
    return (random.normal(size=(600, width)) @ random.normal(size=(width, width)) / 4).astype(np.float32)


@pytest.mark.parametrize("words", ["int3 g32", "int3 g32 asym", "int3 g48", "int3 tensor", "e2m1 g32"])
def test_gptq_takes_the_ranges_of_a_scheme_that_clips(words):
    weight, inputs = drawn()[0], correlated()
    seen = statistics(inputs)
    moment = seen["relative_second_moment"].result()
    errors = {}
    for ranging in ("", "clip"):
        solution = Gptq(fit=False, search=False)(weight, seen, parse_scheme(f"{words} {ranging}"))
        errors[ranging] = output_error(weight, solution.qtensor, moment)
        assert solution.remarks == ()
    assert errors["clip"] < errors[""]


def test_gptq_counts_what_later_columns_make_up_for(monkeypatch):
    weight, inputs = drawn()[0], correlated()
    moment = statistics(inputs)["relative_second_moment"].result()

    def error():
        solution = Gptq(order="none")(weight, statistics(inputs), parse_scheme("int3 g32 clip"))
        return output_error(weight, solution.qtensor, moment)

    found = error()
    blocks = iter([torch.from_numpy(moment[at : at + 32, at : at + 32].copy()) for at in range(0, 128, 32)])
    monkeypatch.setattr(Corner, "moment", property(lambda _: next(blocks)))
    assert found < error()


@pytest.mark.parametrize(
    ("algorithm", "seen", "why"),
    [
        (Nearest(), {}, "there is no statistic"),
        (Nearest(), "none", "no calibration input reached it"),
        (Gptq(), {}, "there is no statistic"),
    ],
)
def test_a_layer_without_inputs_is_not_clipped_and_says_so(algorithm, seen, why):
    weight, scheme = drawn()[0], parse_scheme("int4 g32 clip")
    solution = algorithm(weight, statistics(correlated()[:0]) if seen == "none" else seen, scheme)
    assert any(remark.startswith(why) and "nothing is clipped" in remark for remark in solution.remarks)
    np.testing.assert_array_equal(solution.qtensor.scale, quantize(weight, parse_scheme("int4 g32")).scale)


def test_gptq_clips_a_layer_that_no_input_reached_as_if_all_inputs_were_alike():
    weight, scheme = drawn()[0], parse_scheme("int4 g32 clip")
    solution = Gptq(fit=False, sweeps=0)(weight, statistics(correlated()[:0]), scheme)
    assert solution.remarks == ("no calibration input reached it: rounded without data",)
    expected = quantize(weight, scheme, moment=np.eye(weight.shape[1], dtype=np.float32))
    np.testing.assert_array_equal(solution.qtensor.scale, expected.scale)


def salient():
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 64)).eval()
    with torch.no_grad():
        model[0].weight[5] = 40.0
    mixed = torch.randn(64, 64)
    return model, [torch.randn(128, 64) @ mixed for _ in range(4)]


@pytest.mark.parametrize("words", ["int3 g16", "int3 g16 asym"])
def test_awq_then_clipping_then_gptq_in_one_recipe_each_take_error_off(words):
    model, batches = salient()
    quality = []
    for transforms, ranging, algorithm in (
        (["awq"], "", "nearest"),
        (["awq"], "clip", "nearest"),
        (["awq"], "clip", "gptq"),
    ):
        rule = fb.Rule(kind="linear", weight=f"{words} {ranging}", algorithm=algorithm)
        report = fb.quantize(
            copy.deepcopy(model), fb.Recipe([rule], transforms=transforms), calibration=batches, evaluation=batches
        ).report
        quality.append(report.output_sqnr)
    assert quality == sorted(quality)
    assert quality[0] < quality[-1]


def test_convolutions_in_groups_are_not_clipped_and_say_so():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 8, 3, groups=4), nn.Conv2d(8, 8, 3)).eval()
    for algorithm in ("nearest", "gptq"):
        recipe = fb.Recipe([fb.Rule(kind="conv", weight="int4 channel clip", algorithm=algorithm)])
        report = fb.quantize(copy.deepcopy(model), recipe, calibration=[torch.randn(4, 8, 9, 9)]).report
        said = [any("nothing is clipped" in note for note in layer.remarks) for layer in report.layers]
        assert said == [True, False]


def test_without_data_it_is_an_error_of_the_plan():
    model, _ = salient()
    with pytest.raises(PlanError, match="this recipe needs calibration data"):
        fb.quantize(model, fb.Recipe([fb.Rule(kind="linear", weight="int4 g16 clip")]))


def test_hqq_which_sees_no_inputs_is_a_problem_of_the_plan():
    rule = fb.Rule(kind="linear", weight="int4 g16 float-zero clip", algorithm="hqq")
    (problem,) = fb.plan(salient()[0], fb.Recipe([rule])).problems
    assert "hqq sees no inputs, and 'int4 g16 float-zero clip' clips by them; use mse" in problem


def test_activations_have_no_output_to_look_at():
    for given in ("int8 clip", "int8 static clip"):
        with pytest.raises(RecipeError, match="clip ranges weights by the error of the layer's output; use mse"):
            fb.Rule(kind="linear", weight="int8", input=given)
    with pytest.raises(SchemeError, match="clip ranges weights only; use mse"):
        key_value_cache(nn.Linear(2, 2), "int8 token clip")
    with pytest.raises(SchemeError, match="not activations; use mse"):
        OutputClip().calibrated(None, parse_scheme("int8 clip").grid)


def test_options_out_of_range_are_refused():
    for options in ({"steps": 0}, {"smallest": 0.0}, {"smallest": 1.0}):
        with pytest.raises(SchemeError, match="clip needs steps >= 1"):
            OutputClip(**options)
