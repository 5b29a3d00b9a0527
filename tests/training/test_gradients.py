"""Each gradient is the formula of its paper, worked out by hand; its value is that of rounding."""

import pytest
import torch

from fewbit.errors import RecipeError
from fewbit.formats.integer import Int
from fewbit.ranges.grid import Grid
from fewbit.training.gradients import GRADIENTS, parse_gradient

SYMMETRIC = Grid(format=Int(3))
ASYMMETRIC = Grid(format=Int(3, signed=False), symmetric=False)
#: Inside, on a level, below and above the range of scale 0.5: -4 to 3 steps.
VALUES = [-3.0, -1.9, -0.6, 0.0, 0.2, 0.5, 1.4, 4.0]


def rounded(name, grid, parameters, values=VALUES, upstream=None):
    """Return what a gradient rounds, and the gradients that reach the numbers and the parameters."""
    numbers = torch.tensor(values, requires_grad=True)
    own = {key: torch.tensor(value, requires_grad=parse_gradient(name).learns) for key, value in parameters.items()}
    found = parse_gradient(name)(numbers, own, grid, len(values))
    found.backward(torch.ones(len(values)) if upstream is None else torch.tensor(upstream))
    return found.detach(), numbers.grad, {key: value.grad for key, value in own.items()}


@pytest.mark.parametrize("name", GRADIENTS)
@pytest.mark.parametrize("grid", [SYMMETRIC, ASYMMETRIC], ids=["symmetric", "asymmetric"])
def test_the_value_is_that_of_rounding_to_the_bit(name, grid):
    gradient = parse_gradient(name)
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(200, generator=generator)
    parameters = gradient.initial(torch.tensor(-1.3), torch.tensor(1.7), grid)
    scale, zero = gradient.settled(parameters, grid)
    assert torch.equal(gradient(numbers, parameters, grid, 200), grid.rounded(numbers, scale, zero))


def test_straight_through_passes_what_is_inside_and_stops_what_is_clipped():
    _, numbers, _ = rounded("straight-through", SYMMETRIC, {"low": -2.0, "high": 1.75})
    assert numbers.tolist() == [0, 1, 1, 1, 1, 1, 1, 0]


def test_the_gradient_of_a_learned_step_is_the_distance_to_the_level_inside_and_the_end_of_the_range_outside():
    _, numbers, parameters = rounded("lsq", SYMMETRIC, {"scale": 0.5})
    steps = torch.tensor(VALUES) / 0.5
    inside = (steps >= -4.5) & (steps <= 3.5)
    by_hand = torch.where(inside, steps.round() - steps, steps.round().clamp(-4, 3)).sum()
    # Divided by the root of the numbers that share the scale times the largest level, 3.
    assert parameters["scale"] == pytest.approx(float(by_hand) / (8 * 3) ** 0.5, rel=1e-5)  # float32 sums
    assert numbers.tolist() == inside.float().tolist()


def test_a_learned_zero_point_moves_by_what_is_clipped():
    # Under scale 0.5 and zero point 3 the range is -1.5 to 2; a zero point one higher moves what is clipped by -0.5.
    found, _, parameters = rounded("lsq", ASYMMETRIC, {"scale": 0.5, "zero_point": 3.0})
    clipped = [value for value in VALUES if not -1.75 <= value <= 2.25]
    assert len(clipped) == 3
    assert found.min() == -1.5
    assert found.max() == 2.0
    assert parameters["zero_point"] == pytest.approx(-0.5 * len(clipped) / (8 * 7) ** 0.5, rel=1e-5)


def test_a_learned_clip_gets_the_gradients_of_what_it_clips():
    upstream = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
    _, numbers, parameters = rounded("pact", ASYMMETRIC, {"low": -1.0, "high": 1.0}, upstream=upstream)
    assert parameters == {"low": 3.0, "high": 192.0}
    assert numbers.tolist() == [0, 0, 4, 8, 16, 32, 0, 0]


def test_a_symmetric_learned_clip_is_one_number_for_both_ends():
    upstream = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0]
    _, _, parameters = rounded("pact", SYMMETRIC, {"high": 1.0}, upstream=upstream)
    assert parameters == {"high": 192.0 - 3.0}


def test_element_wise_scaling_grows_with_the_distance_in_the_direction_of_the_gradient():
    upstream = [1.0, -1.0]
    _, numbers, _ = rounded({"name": "ewgs", "delta": 0.4}, SYMMETRIC, {"scale": 0.5}, [0.6, 0.6], upstream)
    # 0.6 is 0.2 steps above its level.
    assert numbers.tolist() == pytest.approx([1 + 0.4 * 0.2, -(1 - 0.4 * 0.2)], rel=1e-5)


def test_element_wise_scaling_by_nothing_is_straight_through():
    _, plain, _ = rounded("lsq", SYMMETRIC, {"scale": 0.5})
    _, shaped, _ = rounded({"name": "ewgs", "delta": 0.0}, SYMMETRIC, {"scale": 0.5})
    assert torch.equal(plain, shaped)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("lsqq", "unknown gradient 'lsqq'; did you mean 'lsq'"),
        ({"delta": 1}, "without a name"),
        ({"name": "ewgs", "delta": 3.0}, r"delta 3.0 is not in \[0, 2\)"),
        ({"name": "lsq", "speed": 3.0}, "unknown option of gradient 'lsq': 'speed'"),
        (7, "is no gradient"),
    ],
)
def test_what_is_no_gradient_is_refused(value, message):
    with pytest.raises(RecipeError, match=message):
        parse_gradient(value)
