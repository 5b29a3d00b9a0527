"""The rows that a layer's weight is multiplied with, each by what an error of its output there costs.

power(D) = sum over rows t of c_t |D x_t|^2 = |X_c D^T|^2 with X_c = diag(sqrt(c)) X; kept as rows while there are fewer
than columns, then as their second moment.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from fewbit.evaluation.fidelity import output_power
from fewbit.statistics.grouped_moment import GroupedMoment
from fewbit.statistics.second_moment import SecondMoment


@dataclass(slots=True)
class WeightedRows:
    """Rows of a linear layer or a convolution, of `groups` parts of `width` numbers each."""

    width: int
    groups: int = 1
    _rows: list[Tensor] = field(default_factory=list)
    _moment: SecondMoment | GroupedMoment | None = None

    def add(self, rows: Tensor, costs: Tensor) -> None:
        """Add rows (n, groups * width) that cost (n,)."""
        self._rows.append(rows.float() * costs.float().clamp(min=0.0).sqrt()[:, None])
        if self.groups > 1 or self._moment is not None or sum(map(len, self._rows)) > self.width:
            self._fold()

    def power(self, difference: Tensor) -> float:
        """Return what errors of the weight (out, width) cost: the sum over rows of their squared outputs."""
        moment = self._moment
        found = 0.0 if moment is None else moment.count * output_power(difference, moment.result())
        for rows in self._rows:
            found += float((rows @ difference.float().T).square().sum(dtype=rows.double().dtype))
        return found

    def _fold(self) -> None:
        for rows in self._rows:
            if self._moment is None:
                one = self.groups == 1
                self._moment = (
                    SecondMoment.init(self.width, rows) if one else GroupedMoment.init(self.width, self.groups, rows)
                )
            self._moment.update(rows)
        self._rows.clear()


@dataclass(slots=True)
class WeightedPicks:
    """How often each row of an embedding is picked, each time by what an error costs there."""

    costs: Tensor

    def add(self, ids: Tensor, costs: Tensor) -> None:
        """Add token ids (n,) that cost (n,)."""
        self.costs.index_add_(0, ids, costs.to(self.costs.dtype))

    def power(self, difference: Tensor) -> float:
        """Return what errors of the table (rows, width) cost."""
        picked = self.costs.nonzero()[:, 0]
        return float((self.costs[picked] * difference[picked].float().square().sum(-1)).sum())
