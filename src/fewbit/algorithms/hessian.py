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


@dataclass(frozen=True, slots=True)
class Hessian:
    """A damped second moment in the order in which columns are rounded."""

    #: H', float32 (in, in).
    moment: Tensor
    #: U, float32 (in, in), upper triangular.
    upper: Tensor
    #: Share of the mean diagonal that was added.
    damping: float


def factor(moment: Tensor, order: Tensor, damping: float) -> Hessian:
    """Return the damped `moment` (in, in) with rows and columns in `order`, factored; damping grows until that works.

    A column that no input reached has a diagonal of 0: the damping makes it a column on its own, rounded to nearest.

    Raises:
        NonFiniteError: no damping helps.

    """
    import torch

    ordered = moment[order][:, order].to(torch.float32)
    mean = float(ordered.diagonal().double().mean())
    identity = torch.eye(ordered.shape[0], dtype=torch.float32, device=ordered.device)
    while damping <= _LIMIT:
        damped = ordered.clone()
        damped.diagonal().add_(damping * mean)
        reverse, failed = torch.linalg.cholesky_ex(damped.flip(0, 1).contiguous())
        if int(failed) == 0:
            upper = torch.linalg.solve_triangular(reverse.flip(0, 1).contiguous(), identity, upper=True)
            if bool(torch.isfinite(upper).all()):
                return Hessian(damped, upper.contiguous(), damping)
        damping *= _GROWTH
    raise NonFiniteError(
        f"the second moment of its inputs cannot be factored, even with {_LIMIT:g} times its mean "
        "diagonal added; look for inputs of extreme size, or use nearest rounding"
    )
