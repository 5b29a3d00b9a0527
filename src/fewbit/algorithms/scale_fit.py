"""The scales that leave the least output error for codes that are given: linear least squares, row by row.

For a row w with units u and groups g, q = sum_g s_g u_g: min over s of (w - q) H (w - q)^T. From scales that are there
it is s + d with A d = b, A_gh = u_g H u_h^T and b_g = ((w - q) H)_g u_g^T.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Numbers in the systems of one chunk of rows.
_AT_ONCE = 1 << 22


def fitted_scales(gradient: Tensor, units: Tensor, moment: Tensor, size: int, scale: Tensor) -> Tensor:
    """Return the fitted scales (out, groups) of groups of `size` columns; where one changes its sign, that of `scale`.

    `gradient` is (weight - units * scale) @ moment; it and `units` are (out, in) with `in` a multiple of `size`.
    """
    import torch

    groups = scale.shape[1]
    fitted = scale.clone()
    rows = max(1, _AT_ONCE // groups**2)
    for start in range(0, units.shape[0], rows):
        own = slice(start, start + rows)
        left = _left(units[own], moment, size).double()
        right = _by_group(gradient[own] * units[own], size).double()
        # A group of zeros has an empty row; the least ridge makes the system solvable and changes nothing else.
        ridge = left.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp(min=1e-30) * 1e-9
        left.diagonal(dim1=1, dim2=2).add_(ridge)
        moved = (scale[own] + torch.linalg.solve(left, right)).to(scale.dtype)
        fitted[own] = torch.where(moved * scale[own] > 0, moved, scale[own])
    return fitted


def _left(units: Tensor, moment: Tensor, size: int) -> Tensor:
    """Return A (out, groups, groups); it is symmetric, so half of it is computed."""
    groups = units.shape[1] // size
    upper = units.new_zeros(units.shape[0], groups, groups)
    for group in range(groups):
        start = group * size
        reached = units[:, start : start + size] @ moment[start : start + size, start:]
        upper[:, group, group:] = _by_group(reached.mul_(units[:, start:]), size)
    return upper + upper.triu(1).mT


def _by_group(values: Tensor, size: int) -> Tensor:
    return values.reshape(values.shape[0], -1, size).sum(2)
