"""Trial weights: their start at first, what their codes stand for always, moved against autograd's gradient."""

import pytest
import torch

from fewbit.algorithms.gptq import Gptq
from fewbit.algorithms.trial_weight import TrialWeight
from fewbit.qtensor import quantize
from fewbit.schemes.notation import parse_scheme
from fewbit.statistics.second_moment import RelativeSecondMoment

SCHEMES = ["int2 g16 asym", "int4 g16", "int3 channel", "int4 channel asym", "int2 g16 float-zero", "int8 tensor",
           "uint4 g16 asym", "int4 tile8x16 asym", "int3 g24 asym", "int4 g16 narrow"]  # fmt: skip

pytestmark = pytest.mark.usefixtures("one_thread")


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def starts(text, kind):
    weight, scheme = draw(24, 64), parse_scheme(text).stored_as("float16")
    if kind == "nearest":
        return weight, quantize(weight, scheme)
    moment = RelativeSecondMoment.init(64, weight)
    moment.update(draw(400, 64, seed=1) @ draw(64, 64, seed=2))
    return weight, Gptq()(weight, {"relative_second_moment": moment}, scheme).qtensor


def same(one, two):
    assert torch.equal(one.codes, two.codes)
    assert one.codes.dtype == two.codes.dtype
    assert torch.equal(one.scale, two.scale)
    assert (one.zero_point is None) == (two.zero_point is None)
    assert one.zero_point is None or torch.equal(one.zero_point, two.zero_point)


@pytest.mark.parametrize("text", SCHEMES)
@pytest.mark.parametrize("kind", ["nearest", "gptq"])
def test_before_the_first_step_it_is_its_start(text, kind):
    weight, start = starts(text, kind)
    trial = TrialWeight(weight, start, ranges=True)
    same(trial.qtensor(), start)
    assert torch.equal(trial.value(), start.dequantize())
    # A weight that its start rounds to nearest, well inside of its code, has no offset at all.
    assert (trial.offset == 0).float().mean() > (0.75 if kind == "nearest" else 0.1)


@pytest.mark.parametrize("text", SCHEMES)
def test_the_value_is_what_the_codes_stand_for_after_any_steps(text):
    weight, start = starts(text, "nearest")
    trial = TrialWeight(weight, start, ranges=True)
    for seed in range(6):
        trial.move(draw(24, 64, seed=seed), 0.2, 0.05)
    found = trial.qtensor()
    assert torch.equal(trial.value(), found.dequantize())
    assert (found.codes != start.codes).any()
    assert (found.scale != start.scale).any()
    assert torch.equal(found.scale, found.scale.half().float())  # as it is stored


def by_autograd(trial, weight, gradient):
    """Return the gradients of offset and factors of the equations of the paper, in float64, groups of 16 columns."""
    scheme, start = trial.start.scheme, trial.start
    steps = scheme.format.qmax - scheme.format.qmin

    def through(values, rounded):
        return values + (rounded - values).detach()

    values, of_value = (own.double().reshape(24, 4, 16) for own in (weight, gradient))
    scale = start.scale.double()[:, :, None]
    zero = torch.zeros_like(scale) if start.zero_point is None else start.zero_point.double()[:, :, None]
    offset = trial.offset.double().reshape(24, 4, 16).requires_grad_()
    upper, lower = (own.double().reshape(24, 4, 1).requires_grad_() for own in (trial.factors * 2)[:2])
    if start.zero_point is None:
        new, moved = through(scale * upper, (scale * upper).half().double()), zero
    else:
        low, high = lower * (scheme.format.qmin - zero) * scale, upper * (scheme.format.qmax - zero) * scale
        new = through((high - low) / steps, ((high - low) / steps).half().double())
        moved = scheme.format.qmin - low / new
        kept = moved if scheme.float_zero else moved.round()
        moved = through(moved, kept.clamp(scheme.format.qmin - steps * scheme.float_zero,
                                          scheme.format.qmax + steps * scheme.float_zero))  # fmt: skip
        moved = through(moved, moved.half().double() if scheme.float_zero else moved)
    place = values / new + offset
    whole = (
        through(place + moved, (place + moved).round()) if scheme.float_zero else through(place, place.round()) + moved
    )
    result = (whole.clamp(scheme.format.qmin, scheme.format.qmax) - moved) * new
    ends = [upper] if start.zero_point is None else [upper, lower]
    return torch.autograd.grad(result, [offset, *ends], of_value)


@pytest.mark.parametrize("text", ["int2 g16 asym", "int4 g16", "int3 g16 float-zero", "uint4 g16 asym"])
def test_it_moves_against_the_sign_of_the_gradient_of_every_parameter(text):
    weight, start = starts(text, "gptq")
    trial = TrialWeight(weight, start, ranges=True)
    for seed in range(4):  # away from where everything is 1
        trial.move(draw(24, 64, seed=10 + seed), 0.1, 0.02)
    gradient = draw(24, 64, seed=5)
    expected = by_autograd(trial, weight, gradient)
    before = [trial.offset.clone(), *(factor.clone() for factor in trial.factors)]
    trial.move(gradient, 0.01, 0.001)
    for parameter, old, slope, rate in zip(
        [trial.offset, *trial.factors], before, expected, [0.01, 0.001, 0.001], strict=False
    ):
        step = (parameter - old).flatten()
        sure = slope.abs().flatten() > 1e-5 * slope.abs().max()  # sums of float32 may miss the sign of what is almost 0
        assert sure.float().mean() > 0.5
        torch.testing.assert_close(step[sure], -rate * slope.flatten()[sure].sign().float(), rtol=0, atol=1e-6)
        # What saturates does not move, exactly.
        assert (step[slope.flatten() == 0] == 0).all()


def test_factors_stay_within_bounds_and_without_them_ranges_stay():
    weight, start = starts("int4 g16 asym", "nearest")
    trial = TrialWeight(weight, start, ranges=True)
    for _ in range(50):
        trial.move(draw(24, 64), 0.0, 0.1)
    factors = torch.cat([factor.flatten() for factor in trial.factors])
    assert factors.min() >= 0.3 - 1e-6
    assert factors.max() <= 1.5
    fixed = TrialWeight(weight, start, ranges=False)
    fixed.move(draw(24, 64), 0.5, 0.1)
    assert torch.equal(fixed.qtensor().scale, start.scale)
    assert (fixed.qtensor().codes != start.codes).any()
