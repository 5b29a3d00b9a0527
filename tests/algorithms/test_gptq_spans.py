"""GPTQ straight onto the grids of GGUF: what comes out is on the grid to the bit, and better than what is rounded."""

from dataclasses import replace

import gguf
import numpy as np
import pytest
import torch

from fewbit.algorithms.gptq import Gptq
from fewbit.algorithms.nearest import Nearest
from fewbit.checkpoints.gguf.blocks import pack, unpack
from fewbit.qtensor import QTensor, quantize
from fewbit.schemes.gguf import GGUF_FORMATS, KINDS
from fewbit.schemes.notation import parse_scheme
from fewbit.statistics.grouped_moment import GroupedMoment
from fewbit.statistics.second_moment import RelativeSecondMoment, SecondMoment

pytestmark = pytest.mark.usefixtures("one_thread")

WIDTH = 512


def correlated(width=WIDTH, rows=900, seed=0):
    rng = np.random.default_rng(seed)
    hidden = rng.normal(size=(rows, width)) * np.arange(1, width + 1) ** -0.7
    return (hidden @ rng.normal(size=(width, width)) * np.exp(rng.normal(size=width) * 0.7)).astype(np.float32)


def weights(out=24, width=WIDTH):
    return (np.random.default_rng(1).normal(size=(out, width)) * 0.02).astype(np.float32)


def statistics(inputs, kind=SecondMoment):
    statistic = kind.init(inputs.shape[-1], inputs)
    statistic.update(inputs)
    return statistic


def output_error(weight, qtensor, inputs):
    return float(((inputs.astype(np.float64) @ (np.asarray(qtensor.dequantize(), np.float64) - weight).T) ** 2).sum())


def solved(text, weight, inputs, **options):
    algorithm = Gptq(relative=False, **options)
    return algorithm(weight, {"second_moment": statistics(inputs)}, parse_scheme(text)).qtensor


def assert_on_grid(found, text):
    kind = next(kind for kind, word in KINDS.items() if word == text)
    rows = pack(found, kind)
    if kind == "NVFP4":
        found = replace(found, scale=replace(found.scale, scale=np.ones((1, 1), np.float32)))
    np.testing.assert_array_equal(gguf.dequantize(rows, gguf.GGMLQuantizationType[kind]), found.dequantize())
    np.testing.assert_array_equal(unpack(rows, kind).dequantize(), found.dequantize())


@pytest.mark.parametrize("text", KINDS.values())
def test_errors_fed_back_on_correlated_inputs_beat_any_nearest_rounding_on_the_grid_of_the_file(text):
    weight, inputs = weights(), correlated()
    found = solved(text, weight, inputs)
    assert_on_grid(found, text)
    weighted = Nearest(weighted=text in GGUF_FORMATS)(
        weight, {"relative_second_moment": statistics(inputs, RelativeSecondMoment)}, parse_scheme(text)
    ).qtensor
    # The inputs have few strong directions: their errors can be made up for nearly all.
    assert output_error(weight, found, inputs) < 0.25 * output_error(weight, weighted, inputs)
    assert ((found.dequantize() - weight) ** 2).sum() > ((weighted.dequantize() - weight) ** 2).sum()


@pytest.mark.parametrize("order", ["none", "group-aware", "activation"])
@pytest.mark.parametrize("text", ["q4_0", "q4_1", "q3_k", "q4_k", "iq4_xs"])
def test_every_order_keeps_spans_whole(text, order):
    weight, inputs = weights(), correlated()
    assert_on_grid(solved(text, weight, inputs, order=order), text)


@pytest.mark.parametrize("text", GGUF_FORMATS)
def test_descent_and_fitted_floats_only_lower_the_error(text):
    weight, inputs = weights(), correlated()
    settings = ({"sweeps": 0, "fit": False}, {"sweeps": 4, "fit": False}, {"sweeps": 4, "fit": True})
    moment = statistics(inputs).result().astype(np.float64)
    moment += 0.01 * moment.diagonal().mean() * np.eye(WIDTH)  # what the loop minimizes
    errors = []
    for options in settings:
        found = solved(text, weight, inputs, order="none", **options)
        assert_on_grid(found, text)
        off = found.dequantize() - weight.astype(np.float64)
        errors.append(float(((off @ moment) * off).sum()))
    assert errors[1] < errors[0]
    # Fitting may find no float16 that is better; what it measures it measures in float32.
    assert errors[2] <= errors[1] * (1 + 1e-5)


@pytest.mark.parametrize("text", ["q4_0", "iq4_nl", "q4_1", "q2_k", "q6_k", "iq4_xs"])
def test_spans_of_zeros_stay_zeros(text):
    weight, inputs = weights(4), correlated()
    weight[1] = 0.0
    weight[2, :256] = 0.0
    found = solved(text, weight, inputs, order="none")
    assert_on_grid(found, text)
    values = found.dequantize()
    assert np.isfinite(values).all()
    assert not values[1].any()


def test_on_another_device_the_batched_loops_find_the_same(monkeypatch):
    from fewbit.algorithms import columns, columns_batched

    weight, inputs = weights(8), correlated()
    expected = {text: solved(text, weight, inputs, fit=False) for text in ("q4_0", "q4_k", "iq4_xs")}

    def batched(name, *arguments):
        getattr(columns_batched, name)(*arguments)

    monkeypatch.setattr(columns, "run", batched)
    for text, own in expected.items():
        found = solved(text, weight, inputs, fit=False)
        assert_on_grid(found, text)
        # Sums in another order move a few codes.
        assert (np.asarray(found.codes) != np.asarray(own.codes)).mean() < 0.05
        ratio = output_error(weight, found, inputs) / output_error(weight, own, inputs)
        assert 0.9 < ratio < 1.1


@pytest.mark.parametrize("text", ["q4_0", "q4_1", "iq4_nl"])
def test_convolutions_in_groups_are_rounded_on_the_grid_too(text):
    rows = np.concatenate([correlated(32, seed=seed) for seed in range(3)], axis=1)
    moment = GroupedMoment.init(32, 3, rows)
    moment.update(rows)
    weight, scheme = weights(12, 32), parse_scheme(text)
    found = Gptq(relative=False)(weight, {"second_moment": moment}, scheme).qtensor
    assert_on_grid(found, text)
    nearest = quantize(weight, scheme)
    for group in range(3):
        own, inputs = slice(4 * group, 4 * group + 4), rows[:, 32 * group : 32 * group + 32]
        off, plain = (inputs @ (part.dequantize() - weight)[own].T for part in (found, nearest))
        assert (off**2).sum() < 0.7 * (plain**2).sum()


def test_a_torch_weight_gives_a_torch_weight():
    found = solved("q4_k", torch.from_numpy(weights(4)), correlated())
    assert isinstance(found.minimum, QTensor)
    assert isinstance(found.minimum.scale, torch.Tensor)
