"""Learned levels: where they live, what they are worth, and what refuses them."""

import numpy as np
import pytest
import torch
from torch import nn

import fewbit as fb
from fewbit.algorithms import columns_batched, columns_compiled
from fewbit.algorithms.gptq import Gptq
from fewbit.algorithms.level_fit import fitted_levels
from fewbit.algorithms.nearest import Nearest
from fewbit.errors import PlanError, RecipeError, SchemeError
from fewbit.evaluation.fidelity import fidelity
from fewbit.footprint import quantized_tensors
from fewbit.interfaces import Layer, QuantizedLayer
from fewbit.kernels.packed import packed, unpacked
from fewbit.qtensor import fake_quantize, quantize
from fewbit.schemes.notation import parse_input_scheme, parse_scheme
from fewbit.statistics.grouped_moment import GroupedMoment
from fewbit.statistics.second_moment import RelativeSecondMoment, SecondMoment

TEXTS = ("kmeans4 channel", "kmeans3 g32", "kmeans2 channel")


def scheme_of(text):
    return parse_scheme(text).stored_as("float16")


def weights(rows=24, width=96):
    return (np.random.default_rng(0).standard_t(4, (rows, width)) * 0.03).astype(np.float32)


def moment_of(kind=SecondMoment, width=96):
    rng = np.random.default_rng(3)
    mixed = rng.standard_normal((width, width)) * np.exp(rng.standard_normal(width)) / np.sqrt(width) + np.eye(width)
    moment = kind.init(width, torch.zeros(1))
    moment.update(torch.from_numpy((rng.standard_normal((1024, width)) @ mixed).astype(np.float32)))
    return moment


def output_error(found, weight, moment):
    error = np.asarray(found.dequantize()) - weight
    return float(((error @ moment.result().numpy()) * error).sum())


# What a tensor holds.


@pytest.mark.parametrize("text", TEXTS)
def test_a_code_is_an_index_into_the_levels_of_its_row(text):
    weight, scheme = weights(), scheme_of(text)
    found = quantize(weight, scheme)
    count = 2**scheme.format.bits
    assert (found.codebook.shape, found.codebook.dtype) == ((24, count), np.float32)
    np.testing.assert_array_equal(found.codebook, found.codebook.astype(np.float16).astype(np.float32))
    wide = found.scale.repeat(96 // found.scale.shape[1], axis=1)
    expected = np.take_along_axis(found.codebook, found.codes.astype(np.int64), axis=1) * wide
    np.testing.assert_array_equal(found.dequantize(), expected)
    # No other level of the row is nearer, but for the last place of float32.
    every = np.abs(found.codebook[:, None, :] * wide[:, :, None] - weight[:, :, None]).min(axis=2)
    assert (np.abs(expected - weight) <= every * (1 + 1e-5) + 1e-9).all()


@pytest.mark.parametrize("text", TEXTS)
def test_every_framework_gets_the_same_levels_and_values(text):
    jax_numpy = pytest.importorskip("jax.numpy")
    weight, counts = weights(), np.arange(1, 97, dtype=np.float32)
    expected = quantize(weight, scheme_of(text), counts)
    for framework in (torch.from_numpy, jax_numpy.asarray):
        found = quantize(framework(weight), scheme_of(text), framework(counts))
        assert type(found.codes) is type(found.codebook) is type(framework(weight))
        for part in ("codes", "scale", "codebook"):
            np.testing.assert_array_equal(np.asarray(getattr(found, part)), getattr(expected, part))
        np.testing.assert_array_equal(np.asarray(found.dequantize()), expected.dequantize())


@pytest.mark.parametrize("text", TEXTS)
def test_packing_is_undone_and_the_footprint_counts_the_levels(text):
    scheme = scheme_of(text)
    found = quantize(torch.from_numpy(weights()), scheme)
    again = unpacked(packed(found), scheme)
    for part in ("codes", "scale", "codebook"):
        assert torch.equal(getattr(again, part), getattr(found, part))
    stored = quantized_tensors(QuantizedLayer(Layer("l", "linear", (24, 96), "Linear"), scheme), "float16", None)
    assert [(own.name, own.shape) for own in stored][-1] == ("codebook", (24, 2**scheme.format.bits))
    assert sum(own.nbytes for own in stored) * 8 == scheme.bits_per_weight((24, 96)) * 24 * 96


def test_rows_of_zeros_and_of_one_number_stay_what_they_are():
    weight = weights()
    weight[0], weight[1], weight[2, 2:] = 0.0, 0.25, 0.0
    for text in TEXTS:
        found = quantize(weight, scheme_of(text)).dequantize()
        assert (found[0] == 0).all()
        assert (found[1] == 0.25).all()
        assert (found[2, 2:] == 0).all()


def test_notation_names_them_and_what_makes_no_sense_is_refused():
    assert [str(parse_scheme(text)) for text in ("kmeans4", "kmeans3 g128")] == ["kmeans4 channel", "kmeans3 g128"]
    for text, why in {
        "kmeans4 tensor": "learns levels for each output, not by tensor; use channel or g128",
        "kmeans4 channel mse": "learns its levels from the weights: leave out range",
        "kmeans4 asym": "takes no zero point; leave out 'asym'",
        "kmeans5": "unknown number format 'kmeans5'",
    }.items():
        with pytest.raises(SchemeError, match=why):
            parse_scheme(text)
    with pytest.raises(SchemeError, match="learns levels of weights, which inputs and outputs do not have"):
        parse_input_scheme("kmeans4")
    with pytest.raises(SchemeError, match="is not for training"):
        fake_quantize(weights(), scheme_of("kmeans4"))
    with pytest.raises(SchemeError, match="rounds to nearest only"):
        quantize(weights(), scheme_of("kmeans4"), seed=0)
    with pytest.raises(SchemeError, match="has no levels of its own"):
        scheme_of("kmeans4").format.encode(weights())


# What they are worth.


def test_learned_levels_beat_integers_and_nf4_at_equal_bits():
    weight = weights(64, 512)
    texts = ("int4 channel", "nf4 channel", "kmeans4 channel", "int3 channel", "kmeans3 channel")
    ratios = {text: fidelity(weight, quantize(weight, scheme_of(text)).dequantize()).sqnr for text in texts}
    assert ratios["kmeans4 channel"] > ratios["nf4 channel"] + 2.0 > ratios["int4 channel"] + 2.0
    assert ratios["kmeans3 channel"] > ratios["int3 channel"] + 4.0


@pytest.mark.parametrize("text", TEXTS)
def test_weighted_levels_beat_plain_ones_in_weighted_error(text):
    weight, moment = weights(), moment_of(RelativeSecondMoment)
    found = Nearest(weighted=True)(weight, {"relative_second_moment": moment}, scheme_of(text)).qtensor
    plain = quantize(weight, scheme_of(text))
    counts = moment.result().numpy().diagonal()
    own, other = ((((q.dequantize() - weight) ** 2) * counts).sum() for q in (found, plain))
    assert own < 0.95 * other


@pytest.mark.parametrize("text", TEXTS)
def test_gptq_beats_nearest_and_the_fit_beats_none(text):
    weight, moment = weights(), moment_of()
    given = {"second_moment": moment}
    fitted, plain = (Gptq(relative=False, fit=fit)(weight, given, scheme_of(text)).qtensor for fit in (True, False))
    nearest = quantize(weight, scheme_of(text), moment.result().numpy().diagonal())
    errors = [output_error(own, weight, moment) for own in (fitted, plain, nearest)]
    assert errors[0] < errors[1] < 0.7 * errors[2]
    np.testing.assert_array_equal(fitted.codebook, np.sort(fitted.codebook.astype(np.float16), axis=1))
    assert not np.array_equal(fitted.codebook, plain.codebook)


def test_fitted_levels_solve_the_least_squares_of_their_codes():
    weight, moment = torch.from_numpy(weights(4, 32)).double(), moment_of(width=32).result().double()
    start = quantize(weight.float(), scheme_of("kmeans2 g16"))
    wide = start.scale.repeat_interleave(16, 1)
    units = start.codebook.gather(1, start.codes.long())
    gradient = (weight.float() - units * wide) @ moment.float()
    levels, moved = fitted_levels((units, start.codebook), gradient, moment.float(), wide, "float32")
    root = torch.linalg.cholesky(moment)
    for row in range(4):
        one_hot = nn.functional.one_hot(start.codes[row].long(), 4).double() * wide[row, :, None].double()
        exact = torch.linalg.lstsq(root.T @ one_hot, root.T @ weight[row]).solution
        torch.testing.assert_close(moved[row].double(), exact[start.codes[row].long()], rtol=1e-3, atol=1e-4)
        assert torch.equal(levels[row].unique(), moved[row].unique())


def test_compiled_and_batched_loops_round_to_the_same_levels():
    torch.manual_seed(0)
    weight, root = torch.randn(20, 16), torch.triu(torch.rand(16, 16), 1) + torch.eye(16)
    tables = torch.sort(torch.randn(20, 8), dim=1).values
    scales = (torch.ones(20, 1), torch.zeros(20, 1), torch.zeros(16, dtype=torch.int64))
    found = []
    for kernel, change in ((columns_compiled, lambda part: part.numpy()), (columns_batched, lambda part: part)):
        own = [change(part.clone()) for part in (weight, weight, root)]
        units = change(torch.empty(20, 16))
        grid = (np.float32(0), np.float32(7), change(tables))
        kernel.round_columns(*own, tuple(change(part) for part in scales), grid, units, 0)
        found.append(torch.as_tensor(units))
    assert torch.equal(*found)
    assert all((tables[row] == found[0][row, :, None]).any(1).all() for row in range(20))


def test_convolutions_in_groups_are_rounded_to_nearest_and_say_so():
    weight = weights(8, 9)
    moment = GroupedMoment.init(9, 4, torch.zeros(1))
    moment.update(torch.from_numpy(np.random.default_rng(1).standard_normal((64, 36)).astype(np.float32)))
    solution = Gptq(relative=False)(weight, {"second_moment": moment}, scheme_of("kmeans2"))
    assert solution.remarks == ("its inputs are in groups: levels are learned, weights rounded to nearest",)


# Models.


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(16, 32), nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))


def batches():
    return list(torch.randint(0, 16, (4, 32), generator=torch.Generator().manual_seed(1)))


def recipe(**options):
    rules = [fb.Rule(kind="linear", weight="kmeans4", **options), fb.Rule(kind="embedding", weight="kmeans3 g16")]
    return fb.Recipe(rules)


def test_a_model_runs_on_learned_levels_and_its_state_dict_loads_back(tmp_path):
    result = fb.quantize(model(), recipe(algorithm="gptq"), calibration=batches(), evaluation=batches())
    state = result.model.state_dict()
    assert state["1.weight_codebook"].shape == (64, 16)
    assert state["1.weight_codebook"].dtype == torch.float16
    other = fb.quantize(model(), recipe()).model
    x = batches()[0]
    with torch.no_grad():
        assert not torch.equal(other(x), result.model(x))
        other.load_state_dict(state)
        assert torch.equal(other(x), result.model(x))
    torch.testing.assert_close(result.model[1].weight, result.model[1].qtensor.dequantize(), rtol=0, atol=0)
    rows = {row.name: row for row in result.report.layers}
    assert rows["1"].solved_sqnr > rows["1"].nearest_sqnr
    assert (rows["1"].becomes, rows["1"].histogram) == ("kmeans4 channel", None)
    result.report.save(tmp_path / "report.html")
    assert "kmeans4 channel" in (tmp_path / "report.html").read_text()


def test_a_state_dict_of_other_levels_is_refused():
    result = fb.quantize(model(), recipe())
    state = result.model.state_dict()
    state["1.weight_codebook"] = state["1.weight_codebook"][:, :8]
    with pytest.raises(RuntimeError, match=r"1.weight_codebook has shape \[64, 8\], not \[64, 16\]"):
        result.model.load_state_dict(state)


def test_the_plan_counts_bits_with_the_levels():
    [row] = [row for row in fb.plan(model(), recipe()).rows if row.layer.name == "1"]
    assert row.notes == ("12.50 bits a weight with its levels",)  # 4, and (16 levels + a scale) x 16 / 32
    assert row.bytes_after == 12.5 * 64 * 32 / 8


@pytest.mark.parametrize("target", ["compressed-tensors", "ort-cpu", "openvino", "tensorrt", "migraphx"])
def test_files_that_cannot_hold_them_are_refused_in_the_plan(target):
    rules = fb.Recipe([fb.Rule(kind="linear", weight="kmeans4")])
    with pytest.raises(PlanError, match=r"(no layout|no form) for.* 'kmeans4 channel'; use int"):
        fb.quantize(model(), rules, to=target)


def test_algorithms_and_transforms_that_need_levels_beforehand_refuse_them():
    for algorithm in ("hqq", "autoround"):
        with pytest.raises(PlanError, match=r"'kmeans4 channel'.*; use"):
            fb.quantize(model(), fb.Recipe([fb.Rule(kind="linear", weight="kmeans4", algorithm=algorithm)]))
    with pytest.raises((RecipeError, SchemeError), match="learns levels of weights"):
        fb.Rule(kind="linear", weight="int8", input="kmeans4")
