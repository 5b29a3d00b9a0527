"""Products as values: whatever way they are spelled, operands, axes and outcome are those of A B."""

import pytest
import torch
from torch import nn

from fewbit.frontends.torch.calls import Call
from fewbit.frontends.torch.matrix_product import matrix_product

DRAW = torch.Generator().manual_seed(0)
A, B = torch.randn(2, 3, 4, generator=DRAW), torch.randn(2, 4, 5, generator=DRAW)
SEVERAL = torch.randn(2, 7, 3, 4, generator=DRAW)
ADDED = torch.randn(2, 3, 5, generator=DRAW)

#: Function, arguments, keywords, and of each operand the axes that are summed over and its own.
SPELLINGS = {
    "matmul": (torch.matmul, (A, B), {}, ((2,), (1,)), ((1,), (2,))),
    "matmul by keyword": (torch.matmul, (A,), {"other": B}, ((2,), (1,)), ((1,), (2,))),
    "method": (torch.Tensor.matmul, (A, B), {}, ((2,), (1,)), ((1,), (2,))),
    "broadcast": (torch.matmul, (SEVERAL, B[:, None]), {}, ((3,), (2,)), ((2,), (3,))),
    "vector": (torch.matmul, (A, B[0, :, 0]), {}, ((2,), (1,)), ((0,), ())),
    "mm": (torch.mm, (A[0], B[0]), {}, ((1,), (0,)), ((0,), (1,))),
    "bmm": (torch.bmm, (A, B), {}, ((2,), (1,)), ((1,), (2,))),
    "bmm by keyword": (torch.bmm, (), {"input": A, "mat2": B}, ((2,), (1,)), ((1,), (2,))),
    "linalg": (torch.linalg.matmul, (A, B), {}, ((2,), (1,)), ((1,), (2,))),
    "addmm": (torch.addmm, (ADDED[0], A[0], B[0]), {}, ((1,), (0,)), ((0,), (1,))),
    "baddbmm": (torch.baddbmm, (ADDED, A, B), {"beta": 0.5, "alpha": 2.0}, ((2,), (1,)), ((1,), (2,))),
    "einsum": (torch.einsum, ("bij,bjk->bik", A, B), {}, ((2,), (1,)), ((1,), (2,))),
    "einsum of a list": (torch.einsum, ("bij,bjk->bik", [A, B]), {}, ((2,), (1,)), ((1,), (2,))),
    "einsum, implicit": (torch.einsum, ("ij,jk", A[0], B[0]), {}, ((1,), (0,)), ((0,), (1,))),
    "heads last": (torch.einsum, ("bqhd, bkhd -> bhqk", SEVERAL, SEVERAL), {}, ((3,), (1,)), ((3,), (1,))),
    "ellipsis": (torch.einsum, ("...id,...jd->...ij", SEVERAL, SEVERAL), {}, ((3,), (2,)), ((3,), (2,))),
    "ellipsis within": (torch.einsum, ("i...d,jd->i...j", A, A[0]), {}, ((2,), (0,)), ((1,), (0,))),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_has_the_operands_and_the_outcome_of_torch(spelling):
    function, args, kwargs, left, right = SPELLINGS[spelling]
    found = matrix_product(function, Call(args, kwargs))
    given = (found.left, found.right)
    for own, (summed, free) in zip(given, (left, right), strict=True):
        assert tuple(axis % own.tensor.ndim for axis in own.summed) == summed
        assert tuple(axis % own.tensor.ndim for axis in own.own) == free
    assert torch.equal(found.multiply(*(own.tensor for own in given)), function(*args, **kwargs))


def test_other_tensors_take_the_place_of_the_operands_and_all_is_float32():
    found = matrix_product(torch.baddbmm, Call((ADDED.half(), A.half(), B.half()), {}))
    outcome = found.multiply(2 * A, B)
    assert outcome.dtype == torch.float32
    assert torch.equal(outcome, torch.baddbmm(ADDED.half().float(), 2 * A, B))


def test_what_is_written_in_place_or_into_a_tensor_is_known():
    room, into = torch.empty(2, 3, 5), ADDED.clone()
    assert matrix_product(torch.bmm, Call((A, B), {"out": room})).into is room
    found = matrix_product(torch.Tensor.baddbmm_, Call((into, A, B), {}))
    assert found.into is into
    assert torch.equal(found.multiply(A, B), torch.baddbmm(ADDED, A, B))
    assert torch.equal(into, ADDED)


@pytest.mark.parametrize(
    ("function", "args"),
    [
        (torch.add, (A, A)), (nn.functional.linear, (A, A[0])), (torch.matmul, (A.long(), B.long())),
        (torch.einsum, ("bij->bji", A)), (torch.einsum, ("bij,bjk,bkl->bil", A, B, B.mT)),
        (torch.einsum, ("i,j->ij", A[0, 0], A[0, 0])), (torch.einsum, ("ii,ij->j", B[:, :2, 0], A[:, 0])),
    ],
    ids=["sum", "linear", "integers", "one operand", "three operands", "outer product", "trace"],
)  # fmt: skip
def test_anything_else_is_no_product_of_two_matrices(function, args):
    assert matrix_product(function, Call(args, {})) is None
