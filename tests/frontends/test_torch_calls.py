"""Calls as values: what counts as the same, what is copied, what is handed on."""

import pytest
import torch

from fewbit.frontends.torch.calls import Call, copied, hidden, items, same, shapes, size


def test_tensors_are_the_same_to_the_bit_or_to_so_many_roundings():
    a = torch.tensor([1.0, -2.0, 3.0])
    near = a * (1 + 3 * torch.finfo(torch.float32).eps)
    assert same(a, a.clone())
    assert not same(a, near)
    assert same(a, near, tolerance=8)
    assert not same(a, a * (1 + 1e-4), tolerance=8)


def test_one_huge_number_does_not_hide_what_happens_to_the_others():
    a = torch.ones(4096)
    a[0] = 1e6
    changed = a.clone()
    changed[1] += 0.01
    assert not same(a, changed, tolerance=8)


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (torch.ones(2), torch.ones(2).double()),
        (torch.ones(2), torch.ones(3)),
        (torch.ones(2), None),
        (torch.tensor([True]), torch.tensor([False])),
        (1, 1.0),
        (object(), object()),
        ((torch.ones(1),), [torch.ones(1)]),
        ({"x": 1}, {"y": 1}),
        ((1, 2), (1, 2, 3)),
        (torch.tensor(float("nan")), torch.tensor(float("nan"))),
    ],
)
def test_what_differs_in_type_shape_or_content_is_not_the_same(a, b):
    assert not same(a, b, tolerance=8)


def test_containers_are_compared_part_by_part():
    a = {"x": (torch.ones(2), [torch.zeros(0), "word", None, torch.float32])}
    assert same(a, copied(a), tolerance=8)


def test_parts_come_before_the_whole():
    x, y = torch.ones(2), torch.zeros(3)
    assert list(items((x, y))) == [0, 1, None]
    assert list(items({"state": x})) == ["state", None]
    assert list(items(x)) == [None]
    assert hidden((None, y, x)) is y
    assert hidden(x) is x
    assert hidden("nothing") is None


def test_a_copy_shares_no_memory_and_arguments_are_replaced_by_place_or_name():
    call = Call((torch.ones(2), 3), {"mask": torch.zeros(2)})
    copy = call.copy()
    copy.args[0].add_(1)
    copy.kwargs["mask"].add_(1)
    assert same(call.arguments(), {0: torch.ones(2), 1: 3, "mask": torch.zeros(2)})
    assert same(call.replaced({1: 4, "mask": None}).arguments(), {0: torch.ones(2), 1: 4, "mask": None})
    assert (shapes(call.args), size(call.arguments())) == (((2,),), 4)
