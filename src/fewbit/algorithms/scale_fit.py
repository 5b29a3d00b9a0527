"""The scales that leave the least output error for codes that are given: linear least squares, row by row.

For a row w with units u and groups g: min over s of (w - sum_g s_g u_g) H (w - sum_g s_g u_g)^T, so A s = b with
A_gh = u_g H u_h^T and b_g = u_g H w^T.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

#: Numbers in the systems of one chunk of rows.
_AT_ONCE = 1 << 24


def fitted_scales(weight: Tensor, units: Tensor, moment: Tensor, size: int, scale: Tensor) -> Tensor:
    """Return the fitted scales (out, groups) of groups of `size` columns; where one is not positive, that of `scale`.

    `weight` and `units` are (out, in) with `in` a multiple of `size`, `moment` is (in, in).
    """
    import torch

    groups = scale.shape[1]
    fitted = scale.clone()
    rows = max(1, _AT_ONCE // groups**2)
    identity = torch.eye(groups, dtype=torch.float64, device=weight.device)
    for start in range(0, weight.shape[0], rows):
        own = slice(start, start + rows)
        part = units[own]
        right = _by_group(weight[own] @ moment * part, size).double()
        columns = [part[:, k : k + size] @ moment[k : k + size] for k in range(0, part.shape[1], size)]
        left = torch.stack([_by_group(column * part, size) for column in columns], 1).double()
        # A group of zeros has an empty row; the least ridge makes the system solvable and changes nothing else.
        ridge = left.diagonal(dim1=1, dim2=2).mean(1).clamp(min=1e-30) * 1e-9
        solved = torch.linalg.solve(left + ridge[:, None, None] * identity, right)
        fitted[own] = torch.where(solved > 0, solved.to(scale.dtype), scale[own])
    return fitted


def _by_group(values: Tensor, size: int) -> Tensor:
    return values.reshape(values.shape[0], -1, size).sum(2)
