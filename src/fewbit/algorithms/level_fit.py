"""The learned levels that leave the least output error for codes that are given: linear least squares, row by row.

For a row w with scales s and codes c, q_j = s_j t[c_j]: min over t of (w - q) H (w - q)^T. From levels that are there
it is t + d with A d = b, A_kl = sum over c_i = k, c_j = l of s_i H_ij s_j, b_k = sum over c_j = k of s_j ((w - q) H)_j.
"""

from __future__ import annotations

import torch
from torch import Tensor

from fewbit.formats.scale_type import ScaleType, round_zero_point

#: Numbers in the one-hot codes of one chunk of rows.
_AT_ONCE = 1 << 24


def fitted_levels(
    found: tuple[Tensor, Tensor], gradient: Tensor, moment: Tensor, scale: Tensor, scale_type: ScaleType | None
) -> tuple[Tensor, Tensor]:
    """Return the fitted levels (out, n), ascending and rounded to `scale_type`, and the units that codes have now.

    `found` are units (out, in), each exactly one of the levels (out, n) that are there; `gradient` is (weight - units *
    scale) @ moment. Levels that no code has stay.
    """
    units, tables = found
    count, width = tables.shape[1], units.shape[1]
    fitted, moved = tables.clone(), units.clone()
    rows = max(1, _AT_ONCE // (count * width))
    for start in range(0, len(units), rows):
        own = slice(start, start + rows)
        codes = torch.searchsorted(tables[own], units[own].contiguous())
        # (rows, n, in): the scale of each column at the level that it has.
        spread = torch.zeros(*tables[own].shape, width, device=units.device)
        spread.scatter_(1, codes[:, None, :], scale[own][:, None, :])
        left = torch.matmul(torch.matmul(spread, moment), spread.mT).double()
        right = torch.matmul(spread, gradient[own][:, :, None])[..., 0].double()
        # A level without codes has an empty row; the least ridge makes the system solvable.
        ridge = left.diagonal(dim1=1, dim2=2).mean(1, keepdim=True).clamp(min=1e-30) * 1e-9
        left.diagonal(dim1=1, dim2=2).add_(ridge)
        levels = round_zero_point((tables[own] + torch.linalg.solve(left, right)).to(tables.dtype), scale_type)
        moved[own] = levels.gather(1, codes)
        fitted[own] = levels.sort(dim=1).values
    return fitted, moved
