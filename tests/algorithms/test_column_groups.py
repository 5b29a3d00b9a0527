"""GPTQ of grouped convolutions: what each group gets on its own, all of them at once."""

import numpy as np
import pytest
import torch

from fewbit.algorithms.gptq import Gptq
from fewbit.errors import NonFiniteError
from fewbit.evaluation.fidelity import output_power
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme
from fewbit.statistics.grouped_moment import GroupedMoment
from fewbit.statistics.second_moment import SecondMoment

GROUPS, WIDTH, OUT = 5, 9, 3

pytestmark = pytest.mark.usefixtures("one_thread")


def neighbours(seed=0, rows=500):
    """Return inputs whose numbers go together as pixels side by side do, float32 (rows, groups * width)."""
    rng = np.random.default_rng(seed)
    walk = rng.normal(size=(rows, GROUPS, WIDTH)).cumsum(2) + 3.0
    return walk.reshape(rows, -1).astype(np.float32)


WEIGHT = np.random.default_rng(7).normal(size=(GROUPS * OUT, WIDTH)).astype(np.float32)


def moments(rows):
    whole = GroupedMoment.init(WIDTH, GROUPS, rows)
    whole.update(rows)
    alone = []
    for group in range(GROUPS):
        alone.append(SecondMoment.init(WIDTH, rows))
        alone[-1].update(rows[:, group * WIDTH : (group + 1) * WIDTH])
    return whole, alone


def solved(weight, moment, text, **options):
    return Gptq(relative=False, **options)(weight, {"second_moment": moment}, parse_scheme(text))


@pytest.mark.parametrize("fit", [False, True])
@pytest.mark.parametrize("text", ["int4 channel", "int3 channel asym", "int8 channel", "nf4 channel", "e4m3 channel"])
def test_groups_are_rounded_as_each_on_its_own_with_static_scales(text, fit):
    whole, alone = moments(neighbours())
    found = solved(WEIGHT, whole, text, order="activation", fit=fit).qtensor
    for group, moment in enumerate(alone):
        own = slice(OUT * group, OUT * (group + 1))
        expected = solved(WEIGHT[own], moment, text, order="activation", fit=fit).qtensor.dequantize()
        # The same loop in other kernels: float32 sums in another order.
        np.testing.assert_allclose(found.dequantize()[own], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "text", ["int8 channel", "int4 channel", "int4 tensor", "int2 channel asym", "int4 g3", "nf4 channel"]
)
def test_it_leaves_less_of_the_output_error_than_nearest(text):
    whole, _ = moments(neighbours())
    moment, scheme = whole.result(), parse_scheme(text)
    found = solved(WEIGHT, whole, text).qtensor
    nearest = quantize(WEIGHT, scheme)
    left, right = (output_power(own.dequantize() - WEIGHT, moment) for own in (found, nearest))
    assert left < 0.7 * right  # half or less on these inputs; nearest twice would give 1
    assert found.codes.shape == nearest.codes.shape
    assert found.scale.shape == nearest.scale.shape


def test_tensors_give_what_arrays_give():
    whole, _ = moments(neighbours())
    torch_whole = GroupedMoment(torch.from_numpy(whole.total), relative=False, count=whole.count)
    found = solved(torch.from_numpy(WEIGHT), torch_whole, "int4 channel").qtensor
    np.testing.assert_array_equal(found.codes.numpy(), solved(WEIGHT, whole, "int4 channel").qtensor.codes)


def test_a_group_that_no_input_reached_is_rounded_to_nearest_and_the_others_are_not():
    rows = neighbours()
    rows[:, :WIDTH] = 0.0
    whole, _ = moments(rows)
    text = "int4 channel narrow absmax"  # the largest weight is a whole number of steps: no ties
    found = solved(WEIGHT, whole, text, search=False, fit=False).qtensor.codes
    nearest = quantize(WEIGHT, parse_scheme(text)).codes
    np.testing.assert_array_equal(found[:OUT], nearest[:OUT])
    assert (found[OUT:] != nearest[OUT:]).any()


def test_damping_grows_where_inputs_are_dependent_and_the_report_hears_of_it():
    rows = np.repeat(neighbours()[:, ::WIDTH], WIDTH, axis=1) * 1e3
    whole, _ = moments(rows)
    solution = solved(WEIGHT, whole, "int4 channel", damping=1e-9)
    assert solution.damping > 1e-9
    assert "damping raised from 1e-09 to" in solution.remarks[0]


def test_what_cannot_be_factored_is_refused():
    whole, _ = moments(neighbours())
    whole.total[2] = -np.ones((WIDTH, WIDTH))
    whole.total[2] += np.eye(WIDTH) * 1.0001
    with pytest.raises(NonFiniteError, match="cannot be factored"):
        solved(WEIGHT, whole, "int4 channel")


def test_no_remark_takes_the_place_of_another():
    whole, _ = moments(neighbours())
    scheme = parse_scheme("int4 channel clip")
    statistics = {"guided_second_moment": whole, scheme.ranging.input_statistic: whole}
    guided = Gptq(guided=True)(WEIGHT, statistics, scheme)
    assert [own.partition(":")[0].partition(",")[0] for own in guided.remarks] == [
        "each of its groups of channels has inputs of its own",
        "no gradient at its output is known",
    ]
