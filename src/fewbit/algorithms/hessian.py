"""The second moment as GPTQ uses it: damped, ordered, and factored.

H' = H + d * mean(diag H) * I; in the order of rounding H' = R D R^T with R upper triangular of unit diagonal. GPTQ's
H'^-1 = U^T U has U = (R D^1/2)^-1; no inverse is taken, as column k is rounded as w_k + sum_{j < k} (w_j - q_j) R_jk
(Babai's nearest plane, arXiv 2507.18553). With J H' J = L L^T (J reverses the order), J L J = R D^1/2.
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
#: Columns that are multiplied with the triangle at once.
_BLOCK = 96


@dataclass(frozen=True, slots=True)
class Corner:
    """The factor of columns that follow one another in the order of rounding, once those before are rounded."""

    #: Their part of R, (k, k).
    root: Tensor
    #: Their part of D, (k,).
    pivots: Tensor

    @property
    def weights(self) -> Tensor:
        """What errors of the columns count, float32 (k,), of mean 1."""
        pivots = self.pivots.double()
        return (pivots / pivots.mean()).float()

    @property
    def moment(self) -> Tensor:
        """What errors of them cost once the columns after have made up for what they can, (k, k)."""
        return self.root * self.pivots @ self.root.mT

    def make_up(self, weight: Tensor, shift: Tensor) -> None:
        """Have the columns of `weight` (rows, k), not rounded yet, make up best together for the errors before them.

        `shift` (rows, k) is what each would make up for in its turn: sum_j (w_j - q_j) R_jk over the columns before.
        """
        import torch

        if len(shift) < len(self.root):
            weight += torch.linalg.solve_triangular(self.root, shift, upper=True, left=False, unitriangular=True)
        else:
            identity = torch.eye(len(self.root), dtype=shift.dtype, device=shift.device)
            inverse = torch.linalg.solve_triangular(self.root, identity, upper=True, unitriangular=True)
            weight.addmm_(shift, inverse)


@dataclass(frozen=True, slots=True)
class Hessian:
    """A damped second moment, and its factor in the order in which columns are rounded."""

    #: Columns in that order, int64 (in,).
    order: Tensor
    #: H', float32 (in, in), columns as they came.
    damped: Tensor
    #: R, float32 (in, in), upper triangular of unit diagonal, columns in order.
    root: Tensor
    #: The diagonal of D, float32 (in,), in order: what the square of an error of a column costs.
    pivots: Tensor
    #: Share of the mean diagonal that was added.
    damping: float

    def corner(self, span: slice) -> Corner:
        """Return the factor of the columns `span` in the order of rounding."""
        return Corner(self.root[span, span], self.pivots[span])

    def gradient(self, left: Tensor) -> Tensor:
        """Return (w - q) H' (out, in), columns as they came, from what each column `left` in its turn, (w - q) R.

        `left` (out, in), in order, is overwritten.
        """
        left *= self.pivots
        for start in range(0, left.shape[1], _BLOCK):  # the columns before are nowhere needed any more
            stop = start + _BLOCK
            left[:, start:stop] = left[:, start:] @ self.root[start:stop, start:].mT
        return left.index_select(1, self.order.argsort())


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
        if int(failed) == 0 and bool(torch.isfinite(torch.stack(torch.aminmax(lower))).all()):
            return Hessian(order, damped, *_parts(lower), damping)
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
        failed = (failed > 0) | ~torch.isfinite(lower).all(2).all(1)
        if not bool(failed.any()):
            return Hessian(order, damped, *_parts(lower), damping)
        damping *= _GROWTH
        own = torch.where(failed[:, None, None], torch.full_like(own, damping), own)
    raise NonFiniteError(_HOPELESS)


def _parts(lower: Tensor) -> tuple[Tensor, Tensor]:
    """Return R and the diagonal of D for the factor of the reversed order, (..., in, in), which is overwritten."""
    diagonal = lower.diagonal(dim1=-2, dim2=-1).clone()
    lower /= diagonal[..., None, :]
    return lower.flip(-2, -1), diagonal.square().flip(-1)
