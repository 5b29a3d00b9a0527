"""The second moment as GPTQ uses it: damped, ordered, and factored.

H' = H + d * mean(diag H) * I. U is upper triangular with H'^-1 = U^T U; with J H' J = L L^T (J reverses the order),
R = J L J is upper, H' = R R^T and U = R^-1: one factorization and one triangular inverse. Source: arXiv 2210.17323.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from fewbit.errors import NonFiniteError

if TYPE_CHECKING:
    from torch import Tensor

#: The damping grows by this while the factorization fails, up to the limit.
_GROWTH, _LIMIT = 3.0, 100.0
_HOPELESS = (
    f"the second moment of its inputs cannot be factored, even with {_LIMIT:g} times its mean diagonal added; "
    "look for inputs of extreme size, or use nearest rounding"
)
#: Columns that are inverted at once: LAPACK's own inverse of a triangle does thrice the work of blocks.
_BLOCK = 192


@dataclass(frozen=True, slots=True)
class Hessian:
    """A damped second moment, and its factor in the order in which columns are rounded."""

    #: Columns in that order, int64 (in,).
    order: Tensor
    #: H', float32 (in, in), columns as they came.
    damped: Tensor
    #: U, float32 (in, in), upper triangular, columns in order.
    upper: Tensor
    #: Share of the mean diagonal that was added.
    damping: float


def factor(moment: Tensor, order: Tensor, damping: float) -> Hessian:
    """Return the damped `moment` (in, in), and with rows and columns in `order` factored; damping grows until it works.

    A column that no input reached has a diagonal of 0: the damping makes it a column on its own, rounded to nearest.

    Raises:
        NonFiniteError: no damping helps.

    """
    import torch

    damped = moment.to(torch.float32, copy=True)
    diagonal = damped.diagonal().clone()
    mean = float(diagonal.double().mean())
    backwards = order.flip(0)
    while damping <= _LIMIT:
        damped.diagonal().copy_(diagonal + damping * mean)
        lower, failed = torch.linalg.cholesky_ex(damped.index_select(0, backwards).index_select(1, backwards))
        if int(failed) == 0:
            _invert(lower)
            if bool(torch.isfinite(torch.stack(torch.aminmax(lower))).all()):
                return Hessian(order, damped, lower.flip(0, 1), damping)
        damping *= _GROWTH
    raise NonFiniteError(_HOPELESS)


def factor_each(moment: Tensor, order: Tensor, damping: float) -> Hessian:
    """Return the damped moments (groups, n, n), each factored in its `order` (groups, n); `damping` is the most needed.

    A group that no input reached is rounded to nearest: its moment becomes the identity.

    Raises:
        NonFiniteError: no damping helps.

    """
    import torch

    moment = moment.to(torch.float32)
    identity = torch.eye(moment.shape[1], dtype=moment.dtype, device=moment.device)
    mean = moment.diagonal(dim1=1, dim2=2).double().mean(1).float()[:, None, None]
    moment, mean = torch.where(mean > 0, moment, identity), torch.where(mean > 0, mean, torch.ones_like(mean))
    backwards = order.flip(1)
    rows, columns = backwards[:, :, None].expand(moment.shape), backwards[:, None, :].expand(moment.shape)
    own = torch.full_like(mean, damping)
    while damping <= _LIMIT:
        damped = moment + own * mean * identity
        lower, failed = torch.linalg.cholesky_ex(damped.gather(1, rows).gather(2, columns))
        inverse = torch.linalg.solve_triangular(lower, identity.expand(moment.shape), upper=False)
        failed = (failed > 0) | ~torch.isfinite(inverse).all(2).all(1)
        if not bool(failed.any()):
            return Hessian(order, damped, inverse.flip(1, 2), damping)
        damping *= _GROWTH
        own = torch.where(failed[:, None, None], torch.full_like(own, damping), own)
    raise NonFiniteError(_HOPELESS)


def _invert(lower: Tensor) -> None:
    """Invert a lower triangular matrix in place, from its last block of columns to its first."""
    import torch

    for start in reversed(range(0, lower.shape[0], _BLOCK)):
        stop = min(start + _BLOCK, lower.shape[0])
        identity = torch.eye(stop - start, dtype=lower.dtype, device=lower.device)
        corner = torch.linalg.solve_triangular(lower[start:stop, start:stop], identity, upper=False)
        lower[stop:, start:stop] = -(lower[stop:, stop:] @ (lower[stop:, start:stop] @ corner))
        lower[start:stop, start:stop] = corner
