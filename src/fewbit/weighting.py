"""An importance matrix in the place of calibration data: what it makes of recipe and plan, and what layers know by it.

It holds the diagonals of second moments, h_j = mean of x_j^2, which weigh the searches of scales; GPTQ, which needs
the whole of them, gives way to rounding to nearest. Source: llama.cpp, tools/imatrix.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from fewbit.algorithms.block import BlockAlgorithm
from fewbit.algorithms.nearest import Nearest
from fewbit.checkpoints.gguf.importance_matrix import ImportanceMatrix, read_importance_matrix
from fewbit.checkpoints.gguf.tensor_names import file_names
from fewbit.errors import CheckpointError
from fewbit.interfaces import Source
from fewbit.plan_row import PlanRow
from fewbit.planning import Plan
from fewbit.problems import several
from fewbit.recipe import Recipe
from fewbit.rule import Rule
from fewbit.solved import Data
from fewbit.solving import needs_data
from fewbit.statistics.mean_square import MeanSquare
from fewbit.transforms.batchnorm import FoldBatchNorm

#: What rounds by an importance matrix.
WEIGHTED = Nearest(weighted=True, relative=False)
_STATISTIC = WEIGHTED.statistics[0]


@dataclass(frozen=True, slots=True)
class Weighting:
    """An importance matrix and the model that it is for."""

    #: What the user calls the file.
    name: str
    matrix: ImportanceMatrix
    #: What its entries are called, by the layer that they are of.
    entries: Mapping[str, str]

    @classmethod
    def read(cls, path: str | Path, source: Source) -> Weighting:
        """Return the matrix in a file for the model of `source`.

        Raises:
            CheckpointError: no such file, one that does not hold what it says, or a model that GGUF has no names for.

        """
        path = Path(path)
        try:
            names = file_names(source.configuration())
        except CheckpointError as error:
            raise CheckpointError(f"importance matrices call layers by their names in GGUF, and {error}") from error
        entries = {name.removesuffix(".weight"): own for name, own in names.items() if name.endswith(".weight")}
        return cls(path.name, read_importance_matrix(path), entries)

    def recipe(self, recipe: Recipe) -> Recipe:
        """Return `recipe` with rounding to nearest in the place of what needs calibration data to find codes."""
        return replace(recipe, rules=tuple(_without_data(rule) for rule in recipe.rules))

    def plan(self, made: Plan, asked: Recipe) -> Plan:
        """Return a plan for that recipe with the searches weighted that the matrix has an entry for.

        `asked` is the recipe as it was: what it names gives way, and the plan says so.
        """
        rows = tuple(self._row(row) for row in made.rows)
        weighted = [row for row in rows if row.algorithm == WEIGHTED]
        missing = [row.layer.name for row in weighted if self.entries.get(row.layer.name) not in self.matrix.sums]
        found = [*_needs(made), *self._misfits(weighted)]
        if len(missing) == len(weighted):
            has = several(self.matrix.sums)
            found.append(f"{self.name} weighs no layer of this recipe; it has {has}: is it of another model?")
        return replace(
            made,
            rows=rows,
            importance=self.name,
            adaptations=(*made.adaptations, *self._said(asked, missing)),
            problems=(*made.problems, *found),
        )

    def prepared(self, made: Plan, model: Any, frontend: Any, data: Data, rescaling: Any) -> Data:  # noqa: ARG002
        """Return `data` with what the layers know of their inputs."""
        return replace(data, known=self.statistics(made))

    def statistics(self, made: Plan) -> dict[str, dict[str, MeanSquare]]:
        """Return what the layers whose searches are weighted know of their inputs."""
        return {row.layer.name: self._known(row.layer.name) for row in made.rows if row.algorithm == WEIGHTED}

    def shown(self, made: Plan, model: Any) -> Sequence[Any]:  # noqa: ARG002
        """Return nothing: a matrix shows nothing of what a model computes."""
        return ()

    def described(self, made: Plan) -> str:  # noqa: ARG002
        """What the report says that layers were weighted by."""
        own = self.matrix
        size = f", {own.chunks} x {own.chunk_size} tokens" if own.chunks and own.chunk_size else ""
        return f"importance matrix {self.name} of {', '.join(own.datasets) or 'unknown data'}{size}"

    def _row(self, row: PlanRow) -> PlanRow:
        """Return a row of the plan with the search of its scales weighted, or with why it is not."""
        if row.scheme is None or row.layer.kind == "embedding":  # which picks rows
            return row
        if not isinstance(row.algorithm, Nearest):
            named = row.algorithm.name if row.algorithm else "it"
            return replace(row, notes=(*row.notes, f"{named} takes no importance matrix"))
        if row.layer.tied:
            return replace(row, notes=(*row.notes, "not weighted: the same codes are an embedding"))
        if WEIGHTED.problem(row.scheme):
            return replace(row, notes=(*row.notes, "no search to weigh"))
        entry = self.entries.get(row.layer.name)
        missing = () if entry in self.matrix.sums else (f"not weighted: {self.name} has no {entry}",)
        return replace(row, algorithm=WEIGHTED, notes=(*row.notes, *missing))

    def _misfits(self, rows: Sequence[PlanRow]) -> list[str]:
        """Return a sentence for each layer that an entry is too wide or too narrow for."""
        found = []
        for row in rows:
            entry = self.entries.get(row.layer.name, "")
            shape = self.matrix.sums[entry].shape if entry in self.matrix.sums else (1, row.layer.shape[1])
            if shape != (1, row.layer.shape[1]):
                found.append(
                    f"{row.layer.name}: {entry} in {self.name} has {shape[0]} x {shape[1]} numbers, and the layer "
                    f"{row.layer.shape[1]} inputs; gather the matrix on this model"
                )
        return found

    def _said(self, asked: Recipe, missing: Sequence[str]) -> list[str]:
        """Return what gives way to the matrix, and which layers it has nothing of."""
        away = sorted({rule.algorithm.name for rule in asked.rules if rule.algorithm != _without_data(rule).algorithm})
        said = f"{self.name}: searches are weighted by it, and weights rounded to nearest"
        said += f" in the place of {', '.join(away)}, which needs second moments as a whole" if away else ""
        lost = f"{several(missing)}: {self.name} has no entry, searched without data" if missing else ""
        return [text for text in (said, lost) if text]

    def _known(self, layer: str) -> dict[str, MeanSquare]:
        entry = self.entries.get(layer)
        if entry is None or entry not in self.matrix.sums:
            return {}
        counted = int(self.matrix.counts[entry][0] > 0)
        squares = self.matrix.mean_squares(entry)[0].astype(np.float64)
        return {_STATISTIC: MeanSquare(squares, counted)}


def _without_data(rule: Rule) -> Rule:
    if rule.keep or not (rule.algorithm.statistics or isinstance(rule.algorithm, BlockAlgorithm)):
        return rule
    return replace(rule, algorithm=Nearest())


def _needs(made: Plan) -> list[str]:
    """Return what of a plan an importance matrix is not enough for."""
    lacking = [row.layer.name for row in made.rows if needs_data(replace(made, rows=(row,)))]
    found = []
    if lacking:
        found.append(
            f"{several(lacking)}: static ranges, ranges by outputs and corrections need calibration data, which an "
            "importance matrix is not; use other schemes, or calibrate"
        )
    changing = [own.name for own in made.recipe.transforms if not isinstance(own, FoldBatchNorm)]
    if changing:
        found.append(
            f"{' and '.join(changing)} changes what goes into layers, and the importance matrix was gathered before; "
            "leave out one of the two"
        )
    return found
