"""Solves the matrices of parameters one by one, by the algorithms of a plan, on what calibration has seen of each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np

from fewbit.activation import Activation
from fewbit.errors import CalibrationError, FewbitError
from fewbit.frontends.jax.links import matrix_name
from fewbit.frontends.jax.observation import Seen
from fewbit.frontends.jax.packed_weight import Description
from fewbit.numerics.namespace import Array
from fewbit.plan_row import PlanRow
from fewbit.qtensor import QTensor
from fewbit.schemes.scheme import Scheme
from fewbit.shared_scales import SharedScales, under

#: Codes of a matrix, and how its input is rounded.
Solved: TypeAlias = tuple[QTensor, Activation | None]


@dataclass(frozen=True, slots=True)
class Solver:
    """Quantizes matrices; notes what fell back."""

    #: By the name of the parameter.
    rows: Mapping[str, PlanRow]
    #: What to say of parameters by name.
    remarks: dict[str, list[str]] = field(default_factory=dict)
    #: Float matrices (out, in) by the name of the parameter and the place in its stack, for scales that several share.
    matrix: Callable[[str, int], Array] | None = None
    _shared: dict[int, SharedScales] = field(default_factory=dict)

    def __call__(self, about: Description, matrix: Array, place: int, statistics: Mapping[str, Any]) -> Solved:
        """Return the codes of a matrix (out, in) at a place of its stack, and how its input is rounded."""
        row = self.rows[about.name]
        assert row.algorithm is not None
        assert row.scheme is not None
        try:
            solution = under(row.algorithm(matrix, statistics, self._scheme(row, place)), row.scheme)
            given = _input(row, statistics)
        except FewbitError as error:
            stack = about.layout.shape[:-2]
            where = matrix_name(about.name, stack, tuple(int(at) for at in np.unravel_index(place, stack)))
            raise type(error)(f"{where}: {error}") from error
        self.remark(about.name, *solution.remarks)
        return solution.qtensor, given

    def of(
        self, about: Description, seen: Seen, solved: Mapping[tuple[str, int], Solved] | None = None
    ) -> Callable[[Array, int], Solved]:
        """Return what quantizes the matrices of a parameter one by one, those that are `solved` left out."""

        def solve(matrix: Array, place: int) -> Solved:
            key = about.name, place
            if solved is not None and key in solved:
                return solved[key]
            return self(about, matrix, place, seen.get(key, {}))

        return solve

    def _scheme(self, row: PlanRow, place: int) -> Scheme:
        """Return the scheme of a matrix, the scale above its scales fixed if others have the same."""
        assert row.scheme is not None
        if self.matrix is None or not row.fused:
            return row.scheme
        if place not in self._shared:
            own = self.matrix
            self._shared[place] = SharedScales([*self.rows.values()], lambda layer: own(layer.name, place))
        return self._shared[place].scheme(row)

    def remark(self, name: str, *texts: str) -> None:
        """Note what to say of a parameter, once."""
        noted = self.remarks.setdefault(name, [])
        noted += [text for text in texts if text not in noted]


def _input(row: PlanRow, statistics: Mapping[str, Any]) -> Activation | None:
    """Return how the input of a matrix is rounded; a static range comes from its statistic."""
    if row.input is None or not row.input.static:
        return Activation(scheme=row.input) if row.input else None
    name = row.input.ranging.statistic
    if name is not None and name not in statistics:
        raise CalibrationError("no calibration input reached it, so it has no range; give other batches, or keep it")
    given = Activation.calibrated(row.input, statistics.get(name) if name else None)
    scale, zero = (None if own is None else np.asarray(own) for own in (given.scale, given.zero_point))
    return replace(given, scale=scale, zero_point=zero)
