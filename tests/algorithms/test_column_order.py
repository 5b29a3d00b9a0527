"""The order in which GPTQ rounds columns: what the diagonal of H says, to the column."""

import pytest
import torch

from fewbit.algorithms.column_order import ORDERS

DIAGONAL = torch.tensor([1.0, 5.0, 3.0, 9.0, 2.0, 4.0, 5.0, 7.0, 0.0])
GROUPS = [(0, 3), (3, 6), (6, 9)]


@pytest.mark.parametrize(
    ("order", "expected"),
    [
        ("none", [0, 1, 2, 3, 4, 5, 6, 7, 8]),
        ("activation", [3, 7, 1, 6, 5, 2, 4, 0, 8]),
        ("group-aware", [3, 5, 4, 7, 6, 8, 1, 2, 0]),
    ],
)
def test_columns_go_by_falling_diagonal(order, expected):
    assert ORDERS[order](DIAGONAL, GROUPS).tolist() == expected


def test_with_one_group_of_all_columns_both_orders_are_one():
    assert torch.equal(*(ORDERS[order](DIAGONAL, [(0, 9)]) for order in ("activation", "group-aware")))


@pytest.mark.parametrize("order", ORDERS)
def test_columns_that_count_alike_stay_as_they_are(order):
    assert ORDERS[order](torch.ones(9), GROUPS).tolist() == list(range(9))
